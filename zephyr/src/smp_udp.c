/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MCUmgr over UDP on sockets that are offloaded to the host (native_sim). MCUmgr's own transport
 * blocks in recvfrom() there and holds the socket's lock meanwhile: replies wait for the next
 * request. This one polls. On real network interfaces take CONFIG_MCUMGR_TRANSPORT_UDP.
 */
#include <errno.h>
#include <string.h>
#include <zephyr/init.h>
#include <zephyr/kernel.h>
#include <zephyr/logging/log.h>
#include <zephyr/mgmt/mcumgr/mgmt/mgmt.h>
#include <zephyr/mgmt/mcumgr/smp/smp.h>
#include <zephyr/mgmt/mcumgr/transport/smp.h>
#include <zephyr/net/socket.h>

#include <mgmt/mcumgr/transport/smp_internal.h>

LOG_MODULE_DECLARE(weft, CONFIG_WEFT_LOG_LEVEL);

#define POLL_MS 10
#define RETRY_MS 1000

BUILD_ASSERT(sizeof(struct sockaddr_in) <= CONFIG_MCUMGR_TRANSPORT_NETBUF_USER_DATA_SIZE,
	     "CONFIG_MCUMGR_TRANSPORT_NETBUF_USER_DATA_SIZE must hold an address");

static int sock;
static struct smp_transport transport;
static K_THREAD_STACK_DEFINE(stack, CONFIG_WEFT_MCUMGR_UDP_STACK_SIZE);
static struct k_thread thread;

static int output(struct net_buf *reply)
{
	struct sockaddr_in peer;
	int r;

	memcpy(&peer, net_buf_user_data(reply), sizeof(peer));
	r = zsock_sendto(sock, reply->data, reply->len, 0, (struct sockaddr *)&peer, sizeof(peer));
	smp_packet_free(reply);
	return r < 0 ? MGMT_ERR_EUNKNOWN : MGMT_ERR_EOK;
}

static uint16_t get_mtu(const struct net_buf *reply)
{
	ARG_UNUSED(reply);
	return CONFIG_MCUMGR_TRANSPORT_NETBUF_SIZE;
}

static int copy_peer(struct net_buf *dst, const struct net_buf *src)
{
	memcpy(net_buf_user_data(dst), net_buf_user_data(src), sizeof(struct sockaddr_in));
	return MGMT_ERR_EOK;
}

static int open_socket(void)
{
	const struct sockaddr_in own = {
		.sin_family = AF_INET,
		.sin_port = htons(CONFIG_WEFT_MCUMGR_UDP_PORT),
		.sin_addr.s_addr = htonl(INADDR_ANY),
	};
	int opened = zsock_socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP);

	if (opened >= 0 && zsock_bind(opened, (const struct sockaddr *)&own, sizeof(own)) != 0) {
		(void)zsock_close(opened);
		return -1;
	}
	return opened;
}

static void receive(void)
{
	static uint8_t packet[CONFIG_MCUMGR_TRANSPORT_NETBUF_SIZE];
	struct sockaddr_in peer;
	socklen_t peer_len = sizeof(peer);
	ssize_t n = zsock_recvfrom(sock, packet, sizeof(packet), ZSOCK_MSG_DONTWAIT,
				   (struct sockaddr *)&peer, &peer_len);
	struct net_buf *request = n > 0 ? smp_packet_alloc() : NULL;

	/* Without a free buffer the packet is lost: hosts repeat it. */
	if (request != NULL) {
		net_buf_add_mem(request, packet, (size_t)n);
		memcpy(net_buf_user_data(request), &peer, sizeof(peer));
		smp_rx_req(&transport, request);
	}
}

static void serve(void *a, void *b, void *c)
{
	ARG_UNUSED(a);
	ARG_UNUSED(b);
	ARG_UNUSED(c);
	for (;;) {
		sock = open_socket();
		if (sock >= 0) {
			break;
		}
		LOG_ERR("UDP port %d cannot be had; trying again", CONFIG_WEFT_MCUMGR_UDP_PORT);
		k_msleep(RETRY_MS);
	}
	LOG_INF("SMP on UDP port %d", CONFIG_WEFT_MCUMGR_UDP_PORT);
	for (;;) {
		struct zsock_pollfd ready = {.fd = sock, .events = ZSOCK_POLLIN};

		if (zsock_poll(&ready, 1, POLL_MS) > 0) {
			receive();
		}
	}
}

static int start(void)
{
	transport.functions.output = output;
	transport.functions.get_mtu = get_mtu;
	transport.functions.ud_copy = copy_peer;
	if (smp_transport_init(&transport) != 0) {
		return -EIO;
	}
	(void)k_thread_create(&thread, stack, K_THREAD_STACK_SIZEOF(stack), serve, NULL, NULL, NULL,
			      CONFIG_WEFT_MCUMGR_UDP_PRIORITY, 0, K_NO_WAIT);
	k_thread_name_set(&thread, "weft_smp_udp");
	return 0;
}

SYS_INIT(start, APPLICATION, CONFIG_KERNEL_INIT_PRIORITY_DEFAULT);
