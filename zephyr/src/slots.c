/* SPDX-License-Identifier: Apache-2.0 */
/* Flash behind the partitions weft_plan_a, weft_plan_b and weft_state. */
#include <string.h>
#include <zephyr/devicetree.h>
#include <zephyr/drivers/flash.h>
#include <zephyr/kernel.h>
#include <zephyr/sys/byteorder.h>
#include <zephyr/sys/util.h>

#include "weft_zephyr.h"

#include "weft_format.h"

#define PARTITION(label) DT_NODELABEL(label)

#if !DT_NODE_EXISTS(PARTITION(weft_plan_a)) || !DT_NODE_EXISTS(PARTITION(weft_plan_b))
#error "The devicetree has no partitions weft_plan_a and weft_plan_b: add them in an overlay, or take one with \
`west build -S weft-slots`. docs/zephyr.md says how. Without slots, set CONFIG_WEFT_SERVICE=n."
#endif

/*
 * A partition lies in a memory. Flash inside a chip (soc-nv-flash) has its driver in the parent
 * node and an address that the processor reads, unless it is simulated; other flash (SPI NOR) is a
 * device itself.
 */
#define MEMORY(label) DT_GPARENT(PARTITION(label))
#define IN_CHIP(label) DT_NODE_HAS_COMPAT(MEMORY(label), soc_nv_flash)
#define SIMULATED(label) DT_NODE_HAS_COMPAT(DT_PARENT(MEMORY(label)), zephyr_sim_flash)
#define IN_PLACE(label) (IN_CHIP(label) && !SIMULATED(label))
#define MEMORY_ADDRESS(label) COND_CODE_1(IN_CHIP(label), (DT_REG_ADDR(MEMORY(label))), (0))
/* Newer Zephyr gives partitions the processor's addresses. */
#define OFFSET(label)                                                                              \
	(DT_REG_ADDR(PARTITION(label)) -                                                           \
	 (DT_REG_ADDR(PARTITION(label)) >= MEMORY_ADDRESS(label) ? MEMORY_ADDRESS(label) : 0))

#if defined(CONFIG_FLASH) && defined(CONFIG_FLASH_HAS_DRIVER_ENABLED)
#define HAS_DRIVER 1
#define DEVICE(label)                                                                              \
	DEVICE_DT_GET(COND_CODE_1(IN_CHIP(label), (DT_PARENT(MEMORY(label))), (MEMORY(label))))
#else
#define HAS_DRIVER 0
#define DEVICE(label) NULL
#endif

struct area {
	const struct device *device; /* NULL: read only */
	const uint8_t *address;      /* where the processor reads it, or NULL */
	uint32_t offset, size;
};

#define AREA(label)                                                                                \
	{                                                                                          \
		.device = DEVICE(label),                                                           \
		.address = IN_PLACE(label)                                                         \
				   ? (const uint8_t *)(MEMORY_ADDRESS(label) + OFFSET(label))      \
				   : NULL,                                                         \
		.offset = OFFSET(label), .size = DT_REG_SIZE(PARTITION(label)),                    \
	}

BUILD_ASSERT(DT_REG_SIZE(PARTITION(weft_plan_a)) == DT_REG_SIZE(PARTITION(weft_plan_b)),
	     "weft_plan_a and weft_plan_b must be alike");
BUILD_ASSERT(IN_PLACE(weft_plan_a) || HAS_DRIVER,
	     "the slots can neither be read in place nor by a flash driver");

static const struct area areas[] = {
	AREA(weft_plan_a),
	AREA(weft_plan_b),
#if DT_NODE_EXISTS(PARTITION(weft_state))
	AREA(weft_state),
#else
	{0},
#endif
};

#define COPY_SIZE                                                                                  \
	(CONFIG_WEFT_SLOT_COPY_SIZE > 0 ? CONFIG_WEFT_SLOT_COPY_SIZE                               \
					: DT_REG_SIZE(PARTITION(weft_plan_a)))

static weft_update_hal_t hal;

static int hal_read(void *ctx, unsigned int number, uint32_t offset, void *dst, uint32_t len)
{
	const struct area *area = &areas[number];

	ARG_UNUSED(ctx);
	if (offset > area->size || len > area->size - offset) {
		return -EINVAL;
	}
#if HAS_DRIVER
	/* By the driver where there is one: it reports what cannot be read instead of faulting. */
	if (area->device != NULL && device_is_ready(area->device)) {
		return flash_read(area->device, (off_t)(area->offset + offset), dst, len);
	}
#endif
	if (area->address == NULL) {
		return -ENODEV;
	}
	memcpy(dst, area->address + offset, len);
	return 0;
}

#if HAS_DRIVER
static int hal_program(void *ctx, unsigned int number, uint32_t offset, const void *src,
		       uint32_t len)
{
	const struct area *area = &areas[number];

	ARG_UNUSED(ctx);
	if (area->device == NULL || offset > area->size || len > area->size - offset) {
		return -EINVAL;
	}
	return flash_write(area->device, (off_t)(area->offset + offset), src, len);
}

static int hal_erase(void *ctx, unsigned int number, uint32_t offset)
{
	const struct area *area = &areas[number];
	const uint32_t sector = number == WEFT_AREA_STATE ? hal.state.sector : hal.slot.sector;

	ARG_UNUSED(ctx);
	if (area->device == NULL || offset > area->size || sector > area->size - offset) {
		return -EINVAL;
	}
#if defined(CONFIG_WEFT_FLASH_STALLS)
	uint32_t begun = k_cycle_get_32();
	int r = flash_erase(area->device, (off_t)(area->offset + offset), sector);

	if (areas[WEFT_AREA_SLOT_A].address != NULL) {
		hal.slot.stall_usec =
			MAX(hal.slot.stall_usec, k_cyc_to_us_ceil32(k_cycle_get_32() - begun));
	}
	return r;
#else
	return flash_erase(area->device, (off_t)(area->offset + offset), sector);
#endif
}
#else
static int hal_program(void *ctx, unsigned int number, uint32_t offset, const void *src,
		       uint32_t len)
{
	ARG_UNUSED(ctx);
	ARG_UNUSED(number);
	ARG_UNUSED(offset);
	ARG_UNUSED(src);
	ARG_UNUSED(len);
	return -ENOTSUP;
}

static int hal_erase(void *ctx, unsigned int number, uint32_t offset)
{
	ARG_UNUSED(ctx);
	ARG_UNUSED(number);
	ARG_UNUSED(offset);
	return -ENOTSUP;
}
#endif

static const void *hal_mapped(void *ctx, unsigned int number)
{
	ARG_UNUSED(ctx);
	return areas[number].address;
}

static weft_flash_t geometry(const struct area *area)
{
	weft_flash_t flash = {.size = area->size, .sector = area->size, .write = 1, .erased = 0xff};
#if HAS_DRIVER && defined(CONFIG_FLASH_PAGE_LAYOUT)
	struct flash_pages_info page;

	if (area->device != NULL && device_is_ready(area->device) &&
	    flash_get_page_info_by_offs(area->device, (off_t)area->offset, &page) == 0) {
		flash.sector = (uint32_t)page.size;
		flash.write = (uint32_t)flash_get_write_block_size(area->device);
		flash.erased = flash_get_parameters(area->device)->erase_value;
	}
#endif
	return flash;
}

const weft_update_hal_t *weft_slots_hal(void)
{
	if (hal.read == NULL) {
		hal.slot = geometry(&areas[0]);
		/* The core refuses a plan that there is no RAM for before it erases anything. */
		if (IS_ENABLED(CONFIG_WEFT_UPDATE) && !IN_PLACE(weft_plan_a)) {
			hal.slot.size = MIN(hal.slot.size, ROUND_DOWN(COPY_SIZE, hal.slot.sector));
		}
		hal.state = geometry(&areas[WEFT_AREA_STATE]);
		hal.program = hal_program;
		hal.erase = hal_erase;
		hal.mapped = hal_mapped;
		hal.read = hal_read;
	}
	return &hal;
}

/* Flash may erase to ones or to zeros, whatever it claims. */
static bool is_empty(const uint32_t *head)
{
	for (size_t i = 0; i < WEFT_HEADER_SIZE / sizeof(*head); i++) {
		if (head[i] != head[0] || (head[0] != 0 && head[0] != UINT32_MAX)) {
			return false;
		}
	}
	return true;
}

uint32_t weft_slots_copy_size(void)
{
	return IN_PLACE(weft_plan_a) ? 0 : COPY_SIZE;
}

void *weft_slots_ram(unsigned int slot)
{
#if IN_PLACE(weft_plan_a)
	ARG_UNUSED(slot);
	return NULL;
#else
	/* An update is verified while the active plan runs. */
	static uint8_t copy[IS_ENABLED(CONFIG_WEFT_UPDATE) ? WEFT_SLOT_COUNT : 1]
			   [ROUND_UP(COPY_SIZE, WEFT_PLAN_ALIGN)] __aligned(WEFT_PLAN_ALIGN);

	return copy[slot % ARRAY_SIZE(copy)];
#endif
}

int weft_slots_empty(unsigned int slot)
{
	uint32_t head[WEFT_HEADER_SIZE / sizeof(uint32_t)];

	if (weft_slots_hal()->read(NULL, slot, 0, head, sizeof(head)) != 0) {
		return WEFT_ERR_FLASH;
	}
	return is_empty(head) ? 1 : 0;
}

int weft_slots_bytes(unsigned int slot, const uint8_t **bytes, size_t *len)
{
	const weft_update_hal_t *flash = weft_slots_hal();
	uint32_t head[WEFT_HEADER_SIZE / sizeof(uint32_t)];
	uint8_t *copy = weft_slots_ram(slot);
	size_t total;

	if (flash->read(NULL, slot, 0, head, sizeof(head)) != 0) {
		return WEFT_ERR_FLASH;
	}
	if (is_empty(head)) {
		return WEFT_ERR_NO_PLAN;
	}
	*bytes = areas[slot].address;
	*len = areas[slot].size;
	if (copy == NULL) {
		return WEFT_OK;
	}
	/* What is no plan, or longer than the slot, is for the verifier to refuse, from its header.
	 */
	total = sys_get_le32((const uint8_t *)head + WEFT_HEADER_TOTAL_LEN);
	if (sys_get_le32((const uint8_t *)head) != WEFT_MAGIC || total > *len) {
		total = sizeof(head);
	}
	*len = total;
	if (*len > COPY_SIZE) {
		return WEFT_ERR_SLOT;
	}
	if (flash->read(NULL, slot, 0, copy, (uint32_t)*len) != 0) {
		return WEFT_ERR_FLASH;
	}
	*bytes = copy;
	return WEFT_OK;
}
