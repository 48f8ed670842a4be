/* SPDX-License-Identifier: Apache-2.0 */
/* RAM that behaves as NOR flash: erased bytes are ones, programming clears bits. See
 * weft,ram-flash.yaml. */
#define DT_DRV_COMPAT weft_ram_flash

#include <errno.h>
#include <string.h>
#include <zephyr/device.h>
#include <zephyr/drivers/flash.h>

#define MEMORY DT_NODELABEL(weft_ram_flash)
#define BASE ((uint8_t *)DT_INST_REG_ADDR(0))
#define SIZE DT_INST_REG_SIZE(0)
#define SECTOR DT_PROP(MEMORY, erase_block_size)
#define UNIT DT_PROP(MEMORY, write_block_size)

static bool in_flash(off_t offset, size_t len)
{
	return offset >= 0 && (size_t)offset <= SIZE && len <= SIZE - (size_t)offset;
}

static int ram_read(const struct device *device, off_t offset, void *dst, size_t len)
{
	ARG_UNUSED(device);
	if (!in_flash(offset, len)) {
		return -EINVAL;
	}
	memcpy(dst, BASE + offset, len);
	return 0;
}

static int ram_write(const struct device *device, off_t offset, const void *src, size_t len)
{
	const uint8_t *bytes = src;

	ARG_UNUSED(device);
	if (!in_flash(offset, len) || offset % UNIT != 0 || len % UNIT != 0) {
		return -EINVAL;
	}
	for (size_t i = 0; i < len; i++) {
		BASE[(size_t)offset + i] &= bytes[i];
	}
	return 0;
}

static int ram_erase(const struct device *device, off_t offset, size_t len)
{
	ARG_UNUSED(device);
	if (!in_flash(offset, len) || offset % SECTOR != 0 || len % SECTOR != 0) {
		return -EINVAL;
	}
	memset(BASE + offset, 0xff, len);
	return 0;
}

static const struct flash_parameters *ram_parameters(const struct device *device)
{
	static const struct flash_parameters parameters = {.write_block_size = UNIT,
							   .erase_value = 0xff};

	ARG_UNUSED(device);
	return &parameters;
}

#ifdef CONFIG_FLASH_PAGE_LAYOUT
static void ram_layout(const struct device *device, const struct flash_pages_layout **layout,
		       size_t *count)
{
	static const struct flash_pages_layout pages = {.pages_count = SIZE / SECTOR,
							.pages_size = SECTOR};

	ARG_UNUSED(device);
	*layout = &pages;
	*count = 1;
}
#endif

static const struct flash_driver_api api = {
	.read = ram_read,
	.write = ram_write,
	.erase = ram_erase,
	.get_parameters = ram_parameters,
#ifdef CONFIG_FLASH_PAGE_LAYOUT
	.page_layout = ram_layout,
#endif
};

DEVICE_DT_INST_DEFINE(0, NULL, NULL, NULL, NULL, POST_KERNEL, CONFIG_FLASH_INIT_PRIORITY, &api);
