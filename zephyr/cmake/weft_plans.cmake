# SPDX-License-Identifier: Apache-2.0
#
# Plans made and put into slots while an application is built. They never become part of the firmware image.
#
# weft_plan(<file> MODEL <model> [ARGS <option>...] [SIGN <key.pem>])
#   Makes <file> in the build directory from an .onnx or .tflite model with `weft plan <option>...`, signed with a key.
#
# weft_development_key()
#   For builds with CONFIG_WEFT_UPDATE; include this file and call it before find_package(Zephyr). Unless
#   CONFIG_WEFT_UPDATE_KEY_FILE is given on the command line, makes development_key.pem and .pub in the build directory,
#   once, and takes that. Products bring a key that is kept.
#
# weft_slots([A <plan>] [B <plan>])
#   Writes weft_slots.hex (Intel HEX, at the slots' addresses) into the build directory, for `west flash --hex-file`
#   and for QEMU (CONFIG_WEFT_QEMU_SLOTS); on native_sim flash.bin, which its simulated flash reads from the directory
#   it is started in. WEFT_SLOT_A and WEFT_SLOT_B on the command line put other plans there.
#
# The command is WEFT_COMMAND, a CMake or environment variable and a list (program and first arguments), else `weft` from
# the PATH or from the .venv that `make` sets up in Weft's repository.

set(WEFT_MODULE_DIR ${CMAKE_CURRENT_LIST_DIR}/../.. CACHE INTERNAL "Weft's repository")

function(weft_find_command)
  if(NOT WEFT_COMMAND AND DEFINED ENV{WEFT_COMMAND})
    set(WEFT_COMMAND $ENV{WEFT_COMMAND} CACHE STRING "The weft command")
  endif()
  if(NOT WEFT_COMMAND)
    find_program(WEFT_PROGRAM weft PATHS ${WEFT_MODULE_DIR}/.venv/bin)
    if(NOT WEFT_PROGRAM)
      message(FATAL_ERROR "The command `weft`, which makes plans, was not found. Install it "
        "(`pip install ${WEFT_MODULE_DIR}`, or `make setup` there), or say where it is: "
        "-DWEFT_COMMAND=/path/to/weft")
    endif()
    set(WEFT_COMMAND ${WEFT_PROGRAM} CACHE STRING "The weft command" FORCE)
  endif()
endfunction()

function(weft_plan file)
  cmake_parse_arguments(ARG "" "MODEL;SIGN" "ARGS" ${ARGN})
  weft_find_command()
  set(sign)
  if(ARG_SIGN)
    set(sign COMMAND ${WEFT_COMMAND} sign --key ${ARG_SIGN} ${APPLICATION_BINARY_DIR}/${file})
  endif()
  get_filename_component(model ${ARG_MODEL} ABSOLUTE)
  set(output ${APPLICATION_BINARY_DIR}/${file})
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${WEFT_COMMAND} plan ${ARG_ARGS} -o ${output} ${model}
    ${sign}
    DEPENDS ${model} ${ARG_SIGN} ${WEFT_MODULE_DIR}/planner_service/format.py
    COMMENT "Planning ${file}"
    VERBATIM
  )
endfunction()

function(weft_development_key)
  if(DEFINED CONFIG_WEFT_UPDATE_KEY_FILE)
    return()
  endif()
  weft_find_command()
  set(key ${CMAKE_BINARY_DIR}/development_key)
  foreach(step "keygen;${key}.pem" "getpub;${key}.pem;-o;${key}.pub")
    list(GET step -1 output)
    if(NOT EXISTS ${output})
      execute_process(COMMAND ${WEFT_COMMAND} ${step} RESULT_VARIABLE failed OUTPUT_QUIET)
      if(failed)
        message(FATAL_ERROR "No development key: `weft` failed. Give one: -DCONFIG_WEFT_UPDATE_KEY_FILE=")
      endif()
    endif()
  endforeach()
  message(STATUS "Plans for this build are to be signed with ${key}.pem")
  set(CONFIG_WEFT_UPDATE_KEY_FILE "\"${key}.pub\"" CACHE STRING "Public key whose signatures count")
endfunction()

function(weft_slots)
  cmake_parse_arguments(ARG "" "A;B" "" ${ARGN})
  set(images)
  set(plans)
  foreach(slot A B)
    if(WEFT_SLOT_${slot})
      get_filename_component(plan ${WEFT_SLOT_${slot}} ABSOLUTE BASE_DIR ${CMAKE_BINARY_DIR})
    elseif(ARG_${slot})
      set(plan ${APPLICATION_BINARY_DIR}/${ARG_${slot}})
    else()
      continue()
    endif()
    string(TOLOWER ${slot} name)
    list(APPEND images ${name}=${plan})
    list(APPEND plans ${plan})
  endforeach()
  if(CONFIG_ARCH_POSIX)
    set(output ${APPLICATION_BINARY_DIR}/flash.bin)
    set(format --bin)
  else()
    set(output ${APPLICATION_BINARY_DIR}/weft_slots.hex)
    set(format --hex)
  endif()
  set(script ${WEFT_MODULE_DIR}/zephyr/scripts/slots.py)
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -E env ZEPHYR_BASE=${ZEPHYR_BASE}
      ${PYTHON_EXECUTABLE} ${script} ${format} ${output} ${APPLICATION_BINARY_DIR} ${images}
    DEPENDS ${script} ${plans} ${ZEPHYR_BINARY_DIR}/edt.pickle
    COMMENT "Writing plans for slots: ${output}"
    VERBATIM
  )
  add_custom_target(weft_slots ALL DEPENDS ${output})
  foreach(target run run_native run_qemu debugserver_qemu)
    if(TARGET ${target})
      add_dependencies(${target} weft_slots)
    endif()
  endforeach()
endfunction()

# The public keys of CONFIG_WEFT_UPDATE_KEY_FILE and _2, as the source of `library` includes them.
function(weft_update_keys library)
  set(output ${CMAKE_CURRENT_BINARY_DIR}/weft_update_keys.inc)
  set(files)
  foreach(file "${CONFIG_WEFT_UPDATE_KEY_FILE}" "${CONFIG_WEFT_UPDATE_KEY_FILE_2}")
    if(NOT file STREQUAL "")
      get_filename_component(file ${file} ABSOLUTE BASE_DIR ${APPLICATION_SOURCE_DIR})
      list(APPEND files ${file})
    endif()
  endforeach()
  if(NOT files AND NOT CONFIG_WEFT_UPDATE_UNSIGNED)
    message(FATAL_ERROR "CONFIG_WEFT_UPDATE needs a public key: make one (`weft keygen key.pem`, "
      "`weft getpub key.pem -o key.pub`), then set CONFIG_WEFT_UPDATE_KEY_FILE=\"/path/to/key.pub\". "
      "For development without signatures: CONFIG_WEFT_UPDATE_UNSIGNED=y")
  endif()
  set(script ${WEFT_MODULE_DIR}/zephyr/scripts/public_key.py)
  execute_process(
    COMMAND ${PYTHON_EXECUTABLE} ${script} ${output} ${files}
    RESULT_VARIABLE failed ERROR_VARIABLE why ERROR_STRIP_TRAILING_WHITESPACE
  )
  if(failed)
    message(FATAL_ERROR "${why}")
  endif()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${script} ${files})
  target_include_directories(${library} PRIVATE ${CMAKE_CURRENT_BINARY_DIR})
endfunction()
