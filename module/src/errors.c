/* SPDX-License-Identifier: Apache-2.0 */
/* Names, messages and remedies of error codes, from the generated list. */
#include "weft_internal.h"

#define X_NAME(name, id, message, remedy) [id] = "WEFT_ERR_" #name,
#define X_MESSAGE(name, id, message, remedy) [id] = message,
#define X_REMEDY(name, id, message, remedy) [id] = remedy,

static const char *lookup(const char *const *table, size_t count, int code, const char *unknown)
{
    /* Codes are zero or negative; -(code + 1) keeps INT_MIN from overflowing. */
    if (code > 0) {
        return unknown;
    }
    size_t index = code == 0 ? 0 : (size_t) - (code + 1) + 1;
    return index < count && table[index] != NULL ? table[index] : unknown;
}

const char *weft_error_name(int code)
{
    static const char *const names[] = {[0] = "WEFT_OK", WEFT_ERROR_LIST(X_NAME)};
    return lookup(names, sizeof names / sizeof names[0], code, "WEFT_ERR_?");
}

const char *weft_error_message(int code)
{
    static const char *const messages[] = {[0] = "no error", WEFT_ERROR_LIST(X_MESSAGE)};
    return lookup(messages, sizeof messages / sizeof messages[0], code, "unknown error");
}

const char *weft_error_remedy(int code)
{
    static const char *const remedies[] = {[0] = "nothing to do", WEFT_ERROR_LIST(X_REMEDY)};
    return lookup(remedies, sizeof remedies / sizeof remedies[0], code, "check that engine and headers match");
}

const char *weft_operator_name(unsigned opcode)
{
#define X_OPERATOR(name, id) [id] = #name,
    static const char *const names[] = {[0] = "", WEFT_OPCODE_LIST(X_OPERATOR)};
    return opcode < sizeof names / sizeof names[0] && names[opcode] != NULL ? names[opcode] : "";
}
