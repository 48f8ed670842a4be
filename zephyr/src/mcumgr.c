/* SPDX-License-Identifier: Apache-2.0 */
/* The update core as a group of MCUmgr's, on whatever transports MCUmgr has. */
#include <zephyr/mgmt/mcumgr/mgmt/handlers.h>
#include <zephyr/mgmt/mcumgr/mgmt/mgmt.h>
#include <zephyr/mgmt/mcumgr/smp/smp.h>
#include <zephyr/sys/byteorder.h>

#include "weft/weft_service.h"
#include "weft/weft_smp.h"

/*
 * The handler wants the whole packet, and writes its whole answer. MCUmgr has taken the header off
 * the request and left room for it in the reply; it writes the reply's header itself.
 */
static int handle(struct smp_streamer *streamer)
{
	struct net_buf *request = streamer->reader->nb, *reply = streamer->writer->nb;
	const uint8_t *packet = request->data - WEFT_SMP_HEADER;
	size_t len;

	if (net_buf_headroom(request) < WEFT_SMP_HEADER ||
	    sys_get_be16(packet + 2) > request->len) {
		return MGMT_ERR_EINVAL;
	}
	/* Another request may follow in the same buffer. */
	len = weft_service_smp(packet, WEFT_SMP_HEADER + sys_get_be16(packet + 2), reply->data,
			       WEFT_SMP_HEADER + net_buf_tailroom(reply));
	if (len == 0) {
		return MGMT_ERR_EBADSTATE;
	}
	reply->len = (uint16_t)len;
	streamer->writer->zs->payload_mut = reply->data + len;
	return MGMT_ERR_EOK;
}

#define READ                                                                                       \
	{                                                                                          \
		.mh_read = handle                                                                  \
	}
#define WRITE                                                                                      \
	{                                                                                          \
		.mh_write = handle                                                                 \
	}

static const struct mgmt_handler handlers[] = {
	[WEFT_SMP_STATE] = READ,   [WEFT_SMP_BEGIN] = WRITE, [WEFT_SMP_WRITE] = WRITE,
	[WEFT_SMP_FINISH] = WRITE, [WEFT_SMP_TEST] = WRITE,  [WEFT_SMP_CONFIRM] = WRITE,
	[WEFT_SMP_REVERT] = WRITE, [WEFT_SMP_ERASE] = WRITE, [WEFT_SMP_STATS] = READ,
	[WEFT_SMP_ABORT] = WRITE,
};

static struct mgmt_group group = {
	.mg_handlers = handlers,
	.mg_handlers_count = ARRAY_SIZE(handlers),
	.mg_group_id = WEFT_SMP_GROUP,
	.custom_payload = true,
#ifdef CONFIG_MCUMGR_GRP_ENUM_DETAILS_NAME
	.mg_group_name = "weft",
#endif
};

static void register_group(void)
{
	mgmt_register_group(&group);
}

MCUMGR_HANDLER_DEFINE(weft, register_group);
