/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host board: a board as a process. Three files are its flash (host_flash.h): two plan slots and the journal that says
 * what is active. It serves inference on TCP and the update group of SMP on UDP, both on loopback, each in a thread of
 * its own: inference goes on from the active slot while a plan is received into the other. A plan that is to be tried
 * is booted at once, by the same rules as after a reset; no rebuild, no restart. With an empty journal it adopts the
 * plan that stands in slot a, or else in b, as if it had been flashed with the firmware. Without a plan, or with bad
 * ones, it stays up, takes updates, and answers every inference with the reason.
 *
 * Inference (little-endian). Request: u32 length of what follows, u8 kind, payload.
 *   'i' nothing: what runs here.     'r' int8 values of all inputs, one after the other: one inference.
 * Reply: u32 length of what follows, u8 kind, payload.
 *   'i' JSON.     'o' int8 values of all outputs, one after the other.
 *   'e' JSON with code, name, message, remedy, record and offset.
 */
#define _POSIX_C_SOURCE 200809L

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "host_device.h"

#define DEFAULT_SLOT_BYTES (1u << 20)
#define DEFAULT_SECTOR_BYTES 4096u
#define DEFAULT_WRITE_BYTES 8u
#define DEFAULT_RAM_BYTES (256u << 10)
/* A session without a write for this long may be replaced by another plan's. */
#define DEFAULT_IDLE_SECONDS 60u
/* A client that stalls for this long is dropped: the board serves one at a time. */
#define CLIENT_SECONDS 10
#define DRAIN_MAX (1u << 20)
#define TEXT_MAX (64u << 10)

typedef struct {
    host_options_t device;
    uint16_t port, update_port;
} options_t;

typedef struct {
    const char *name, *message, *remedy;
    weft_error_t where;
} fault_t;

static host_device_t device;

/* ---------------------------------------------------------------- JSON text */

typedef struct {
    char bytes[TEXT_MAX];
    size_t len;
} text_t;

static __attribute__((format(printf, 2, 3))) void add(text_t *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text->bytes + text->len, sizeof text->bytes - text->len, format, arguments);
    va_end(arguments);
    if (n > 0) {
        text->len += (size_t)n < sizeof text->bytes - text->len ? (size_t)n : sizeof text->bytes - text->len - 1u;
    }
}

static void add_fault(text_t *text, const fault_t *fault)
{
    add(text,
        "{\"code\": %d, \"name\": \"%s\", \"message\": \"%s\", \"remedy\": \"%s\", \"record\": %u, \"offset\": %" PRIu32
        "}",
        fault->where.code, fault->name, fault->message, fault->remedy, fault->where.record, fault->where.offset);
}

static void add_tensor(text_t *text, const weft_tensor_info_t *info)
{
    static const char *const dtype[] = {"int8", "uint8", "float32"};
    add(text, "{\"shape\": [%u, %u, %u], \"dtype\": \"%s\", \"scale\": %.9g, \"zero_point\": %d", info->h, info->w,
        info->c, dtype[info->dtype], (double)info->scale, info->zero_point);
}

static fault_t fault_of(int code)
{
    return (fault_t){.name = weft_error_name(code),
                     .message = weft_error_message(code),
                     .remedy = weft_error_remedy(code),
                     .where = {.code = code, .record = 0xffff}};
}

static void add_plan(text_t *text)
{
    static const char *const mode[] = {"resident", "streamed", "external"};
    weft_tensor_info_t tensor;
    weft_plan_info_t info;

    weft_plan_info(&device.plan, &info);
    add(text, ", \"model_id\": \"");
    for (unsigned i = 0; i < 32; i++) {
        add(text, "%02x", info.model_id[i]);
    }
    add(text,
        "\", \"plan_version\": %" PRIu32 ", \"plan_bytes\": %" PRIu32 ", \"arena_bytes\": %zu, \"macs\": %" PRIu64
        ", \"base_macs\": %" PRIu64 ", \"inputs\": [",
        info.plan_version, info.total_len, weft_arena_size(&device.plan), info.macs, info.base_macs);
    for (unsigned i = 0; i < weft_input_count(&device.plan); i++) {
        weft_input_info(&device.plan, i, &tensor);
        add(text, "%s", i > 0 ? ", " : "");
        add_tensor(text, &tensor);
        add(text, ", \"mode\": \"%s\"}", mode[weft_input_mode(&device.plan, i)]);
    }
    add(text, "], \"outputs\": [");
    for (unsigned i = 0; i < weft_output_count(&device.plan); i++) {
        weft_output_info(&device.plan, i, &tensor);
        add(text, "%s", i > 0 ? ", " : "");
        add_tensor(text, &tensor);
        add(text, "}");
    }
    add(text, "]}");
}

static void add_info(text_t *text)
{
    pthread_mutex_lock(&device.run);
    if (device.where.code != WEFT_OK) {
        fault_t fault = fault_of(device.where.code);
        fault.where = device.where;
        add(text, "{\"slot\": null, \"runs\": %" PRIu32 ", \"error\": ", device.runs);
        add_fault(text, &fault);
        add(text, "}");
    } else {
        add(text, "{\"slot\": \"%c\", \"trial\": %s, \"tries\": %u, \"runs\": %" PRIu32, 'a' + device.boot.slot,
            device.boot.trial != 0 ? "true" : "false", device.boot.tries, device.runs);
        add_plan(text);
    }
    pthread_mutex_unlock(&device.run);
}

/* ---------------------------------------------------------------- server */

/* Written by a signal handler, read by both threads. */
static int stop;

static void on_stop(int signal_number)
{
    (void)signal_number;
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
}

static bool stopping(void)
{
    return __atomic_load_n(&stop, __ATOMIC_RELAXED) != 0;
}

static bool receive(int client, void *bytes, size_t n)
{
    uint8_t *next = bytes;
    while (n > 0 && !stopping()) {
        ssize_t got = recv(client, next, n, 0);
        if (got <= 0) {
            if (got < 0 && errno == EINTR) {
                continue;
            }
            return false;
        }
        next += got;
        n -= (size_t)got;
    }
    return n == 0;
}

static bool transmit(int client, const void *bytes, size_t n)
{
    const uint8_t *next = bytes;
    while (n > 0) {
        ssize_t sent = send(client, next, n, MSG_NOSIGNAL);
        if (sent <= 0) {
            if (sent < 0 && errno == EINTR) {
                continue;
            }
            return false;
        }
        next += sent;
        n -= (size_t)sent;
    }
    return true;
}

static bool reply_head(int client, char kind, size_t payload)
{
    uint32_t n = (uint32_t)(payload + 1u);
    uint8_t head[5] = {(uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24), (uint8_t)kind};
    return transmit(client, head, sizeof head);
}

static bool reply_text(int client, char kind, const text_t *text)
{
    return reply_head(client, kind, text->len) && transmit(client, text->bytes, text->len);
}

static bool reply_fault(int client, const fault_t *fault)
{
    text_t text = {.len = 0};
    add_fault(&text, fault);
    return reply_text(client, 'e', &text);
}

/* How many bytes an inference takes, and why there is none. */
static size_t input_bytes(int *fault)
{
    pthread_mutex_lock(&device.run);
    size_t n = device.input_bytes;
    *fault = device.where.code;
    pthread_mutex_unlock(&device.run);
    return n;
}

/* Receives the input and answers with the outputs; false when the connection is to be closed. */
static bool serve_inference(int client, size_t bytes)
{
    int8_t *input = malloc(bytes > 0 ? bytes : 1u), *output = NULL;
    size_t output_bytes = 0;
    bool going = input != NULL && receive(client, input, bytes);
    if (going) {
        int r = host_device_infer(&device, input, bytes, &output, &output_bytes);
        if (r == WEFT_OK) {
            going = reply_head(client, 'o', output_bytes) && transmit(client, output, output_bytes);
        } else {
            fault_t fault = fault_of(r);
            going = reply_fault(client, &fault);
        }
    }
    free(input);
    free(output);
    return going;
}

/* Answers one request; false when the connection is to be closed. */
static bool serve_request(int client)
{
    uint8_t head[5];
    int missing;
    if (!receive(client, head, sizeof head)) {
        return false;
    }
    uint32_t length = head[0] | (uint32_t)head[1] << 8 | (uint32_t)head[2] << 16 | (uint32_t)head[3] << 24;
    if (head[4] == 'i' && length == 1u) {
        text_t text = {.len = 0};
        add_info(&text);
        return reply_text(client, 'i', &text);
    }
    size_t wanted = input_bytes(&missing);
    if (head[4] == 'r' && missing != WEFT_OK) {
        fault_t fault = fault_of(missing);
        reply_fault(client, &fault);
        return false;
    }
    if (head[4] != 'r' || length - 1u != wanted) {
        fault_t fault = fault_of(WEFT_ERR_ARG);
        fault.name = "BAD_REQUEST";
        fault.message = "the request's kind or length is wrong";
        fault.remedy = "ask for the board's info and send as many bytes as its inputs have";
        reply_fault(client, &fault);
        return false;
    }
    return serve_inference(client, wanted);
}

/* Closing while unread bytes are left would reset the connection and lose the reply. */
static void hang_up(int client)
{
    uint8_t rest[512];
    ssize_t got = 1;
    shutdown(client, SHUT_WR);
    for (size_t drained = 0; got > 0 && drained < DRAIN_MAX && !stopping(); drained += sizeof rest) {
        got = recv(client, rest, sizeof rest, 0);
    }
    close(client);
}

/* A socket of `type` on loopback; *port is the one that was asked for, then the one that was taken. */
static int bind_to(int type, uint16_t *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(*port)};
    socklen_t length = sizeof address;
    const int yes = 1;
    int bound = socket(AF_INET, type, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bound < 0 || setsockopt(bound, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(bound, (const struct sockaddr *)&address, sizeof address) != 0 ||
        getsockname(bound, (struct sockaddr *)&address, &length) != 0 ||
        (type == SOCK_STREAM && listen(bound, 4) != 0)) {
        perror("weft_host_board: cannot listen");
        exit(1);
    }
    *port = ntohs(address.sin_port);
    return bound;
}

static void serve(int server)
{
    const struct timeval patience = {.tv_sec = CLIENT_SECONDS}, idle = {.tv_sec = 1};
    const int yes = 1;
    setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof idle);
    while (!stopping()) {
        int client = accept(server, NULL, NULL);
        if (client < 0) {
            continue;
        }
        setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        while (!stopping() && serve_request(client)) {
        }
        hang_up(client);
    }
}

/* The thread that takes updates. */
static void *take_updates(void *ctx)
{
    const struct timeval idle = {.tv_usec = 200000};
    uint8_t packet[HOST_PACKET_BYTES + 1u], reply[HOST_PACKET_BYTES];
    int line = *(const int *)ctx;
    setsockopt(line, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof idle);
    while (!stopping()) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t got = recvfrom(line, packet, sizeof packet, 0, (struct sockaddr *)&from, &length);
        if (got <= 0 || (size_t)got > HOST_PACKET_BYTES) {
            continue;
        }
        size_t used = host_device_packet(&device, packet, (size_t)got, reply, sizeof reply);
        if (used > 0) {
            (void)sendto(line, reply, used, 0, (const struct sockaddr *)&from, length);
        }
        host_device_settle(&device);
    }
    return NULL;
}

/* ---------------------------------------------------------------- start */

static void usage(void)
{
    fprintf(stderr,
            "usage: weft_host_board --slot-a FILE --slot-b FILE --state FILE --key FILE [OPTION VALUE]...\n"
            "  --slot-a, --slot-b  flash of the plan slots; a file that is absent is an erased slot\n"
            "  --state             flash of the journal\n"
            "  --key               public key whose plans are taken, PEM; twice: either key's\n"
            "  --vendor, --class   ids that a plan must name, 32 hexadecimal digits (default: any)\n"
            "  --slot-size         bytes of a slot (default 1048576)\n"
            "  --sector, --write   bytes that are erased and programmed at once (default 4096 and 8)\n"
            "  --erase-us          how long the erase of a sector takes (default 0)\n"
            "  --stall             1: inference waits meanwhile, as on parts with one bank of flash (default 0)\n"
            "  --ram               largest arena, bytes (default 262144)\n"
            "  --confirm-after     inferences that confirm a plan on trial (default 0: by command only)\n"
            "  --selftest-ms       milliseconds after which a trial's self-test has failed (default 0: never)\n"
            "  --idle              seconds after which another plan may replace a silent session's (default 60)\n"
            "  --port              TCP port for inference on 127.0.0.1; 0, the default, takes a free one\n"
            "  --update-port       UDP port for SMP on 127.0.0.1, the same way\n");
    exit(2);
}

static unsigned long number(const char *text, unsigned long max)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 0);
    if (errno != 0 || *text < '0' || *text > '9' || *end != '\0' || value > max) {
        usage();
    }
    return value;
}

static bool identifier(const char *text, uint8_t id[HOST_ID_BYTES])
{
    if (strlen(text) != 2u * HOST_ID_BYTES || strspn(text, "0123456789abcdefABCDEF") != 2u * HOST_ID_BYTES) {
        usage();
    }
    for (unsigned i = 0; i < HOST_ID_BYTES; i++) {
        const char digits[3] = {text[2u * i], text[2u * i + 1u], '\0'};
        id[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    return true;
}

static options_t parse(int argc, char **argv)
{
    options_t options = {.device = {.slot_bytes = DEFAULT_SLOT_BYTES,
                                    .sector_bytes = DEFAULT_SECTOR_BYTES,
                                    .write_bytes = DEFAULT_WRITE_BYTES,
                                    .ram_bytes = DEFAULT_RAM_BYTES,
                                    .idle_seconds = DEFAULT_IDLE_SECONDS}};
    host_options_t *o = &options.device;
    const struct {
        const char *name;
        uint32_t *value;
    } numbers[] = {
        {"--slot-size", &o->slot_bytes}, {"--sector", &o->sector_bytes},     {"--write", &o->write_bytes},
        {"--ram", &o->ram_bytes},        {"--erase-us", &o->erase_us},       {"--confirm-after", &o->confirm_after},
        {"--idle", &o->idle_seconds},    {"--selftest-ms", &o->selftest_ms}, {"--stall", &o->stall}};
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        bool known = false;
        if (i + 1 == argc) {
            usage();
        }
        for (unsigned k = 0; k < sizeof numbers / sizeof numbers[0]; k++) {
            if (strcmp(name, numbers[k].name) == 0) {
                *numbers[k].value = (uint32_t)number(value, UINT32_MAX);
                known = true;
            }
        }
        if (strcmp(name, "--slot-a") == 0) {
            o->slot_path[0] = value;
        } else if (strcmp(name, "--slot-b") == 0) {
            o->slot_path[1] = value;
        } else if (strcmp(name, "--state") == 0) {
            o->state_path = value;
        } else if (strcmp(name, "--key") == 0 && o->key_path[1] == NULL) {
            o->key_path[o->key_path[0] != NULL] = value;
        } else if (strcmp(name, "--vendor") == 0) {
            o->has_vendor = identifier(value, o->vendor_id);
        } else if (strcmp(name, "--class") == 0) {
            o->has_class = identifier(value, o->class_id);
        } else if (strcmp(name, "--port") == 0) {
            options.port = (uint16_t)number(value, UINT16_MAX);
        } else if (strcmp(name, "--update-port") == 0) {
            options.update_port = (uint16_t)number(value, UINT16_MAX);
        } else if (!known) {
            usage();
        }
    }
    if (o->slot_path[0] == NULL || o->slot_path[1] == NULL || o->state_path == NULL || o->key_path[0] == NULL) {
        usage();
    }
    return options;
}

int main(int argc, char **argv)
{
    options_t options = parse(argc, argv);
    struct sigaction action = {.sa_handler = on_stop};
    static text_t text;
    sigset_t stops;
    pthread_t updates;

    const char *wrong = host_device_start(&device, &options.device);
    if (wrong != NULL) {
        fprintf(stderr, "weft_host_board: %s\n", wrong);
        return 1;
    }
    int server = bind_to(SOCK_STREAM, &options.port), line = bind_to(SOCK_DGRAM, &options.update_port);
    add_info(&text);
    printf("%s\nlistening on 127.0.0.1:%u\nupdates at smp+udp://127.0.0.1:%u\n", text.bytes, options.port,
           options.update_port);
    fflush(stdout);

    /* Signals are the main thread's: they end its accept(). */
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stops, NULL);
    if (pthread_create(&updates, NULL, take_updates, &line) != 0) {
        fprintf(stderr, "weft_host_board: no thread is to be had\n");
        return 1;
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    pthread_sigmask(SIG_UNBLOCK, &stops, NULL);
    serve(server);
    pthread_join(updates, NULL);
    close(server);
    close(line);
    host_device_stop(&device);
    return 0;
}
