/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host board: a board as a process. Two files are its plan slots, a third says which one is active. It boots the
 * active plan, serves inference on TCP loopback, and needs no rebuild to run another plan: only the slot's bytes
 * change. Without a plan, or with a bad one, it stays up and answers every inference with the reason.
 *
 * Protocol (little-endian). Request: u32 length of what follows, u8 kind, payload.
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
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "weft/weft.h"

#define DEFAULT_SLOT_BYTES (1u << 20)
#define DEFAULT_RAM_BYTES (256u << 10)
/* What this board accepts of a plan's work: bounds the time of boot and of one inference. */
#define ROW_STEPS_MAX 1000000u
#define CALLS_MAX 100000000u
#define MACS_MAX UINT64_C(20000000000)
#define ELEMENTS_MAX UINT64_C(2000000000)
/* A client that stalls for this long is dropped: the board serves one at a time. */
#define CLIENT_SECONDS 10
#define DRAIN_MAX (1u << 20)
#define TEXT_MAX (64u << 10)
#define INPUTS_MAX 255u
#define ERASED 0xffu

typedef struct {
    const char *slot_path[2];
    const char *state_path;
    size_t slot_bytes;
    uint32_t ram_bytes;
    uint16_t port;
} options_t;

typedef struct {
    char name[32];
    const char *message, *remedy;
    weft_error_t where; /* code 0: the board runs a plan */
} fault_t;

typedef struct {
    unsigned slot;
    uint8_t *flash; /* the active slot's bytes as they were at boot */
    size_t flash_bytes;
    uint8_t *ram;
    int8_t *input;
    size_t input_bytes, output_bytes;
    weft_plan_t plan;
    fault_t fault;
    uint32_t runs;
} board_t;

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

static size_t tensor_bytes(const weft_tensor_info_t *info)
{
    return (size_t)info->h * info->w * info->c;
}

static void add_info(text_t *text, const board_t *board)
{
    static const char *const mode[] = {"resident", "streamed", "external"};
    weft_tensor_info_t tensor;
    weft_plan_info_t info;

    add(text, "{\"slot\": \"%c\", \"runs\": %" PRIu32, "ab"[board->slot], board -> runs);
    if (board->fault.where.code != WEFT_OK) {
        add(text, ", \"error\": ");
        add_fault(text, &board->fault);
        add(text, "}");
        return;
    }
    weft_plan_info(&board->plan, &info);
    add(text, ", \"model_id\": \"");
    for (unsigned i = 0; i < 32; i++) {
        add(text, "%02x", info.model_id[i]);
    }
    add(text,
        "\", \"plan_version\": %" PRIu32 ", \"plan_bytes\": %" PRIu32 ", \"arena_bytes\": %zu, \"macs\": %" PRIu64
        ", \"base_macs\": %" PRIu64 ", \"inputs\": [",
        info.plan_version, info.total_len, weft_arena_size(&board->plan), info.macs, info.base_macs);
    for (unsigned i = 0; i < weft_input_count(&board->plan); i++) {
        weft_input_info(&board->plan, i, &tensor);
        add(text, "%s", i > 0 ? ", " : "");
        add_tensor(text, &tensor);
        add(text, ", \"mode\": \"%s\"}", mode[weft_input_mode(&board->plan, i)]);
    }
    add(text, "], \"outputs\": [");
    for (unsigned i = 0; i < weft_output_count(&board->plan); i++) {
        weft_output_info(&board->plan, i, &tensor);
        add(text, "%s", i > 0 ? ", " : "");
        add_tensor(text, &tensor);
        add(text, "}");
    }
    add(text, "]}");
}

/* ---------------------------------------------------------------- boot */

static void set_fault(fault_t *fault, int code)
{
    memset(fault, 0, sizeof *fault);
    fault->where.code = code;
    fault->where.record = 0xffff;
    snprintf(fault->name, sizeof fault->name, "%s", weft_error_name(code));
    fault->message = weft_error_message(code);
    fault->remedy = weft_error_remedy(code);
}

static void set_board_fault(fault_t *fault, int code, const char *name, const char *message, const char *remedy)
{
    set_fault(fault, code);
    snprintf(fault->name, sizeof fault->name, "%s", name);
    fault->message = message;
    fault->remedy = remedy;
}

/* The slot that the state file names; the first one if there is none. */
static unsigned active_slot(const char *path)
{
    int name = 'a';
    FILE *file = fopen(path, "rb");
    if (file != NULL) {
        name = fgetc(file);
        fclose(file);
    }
    return name == 'b' ? 1u : 0u;
}

/* A copy, not a mapping: what was verified must not change when somebody writes the file. */
static size_t read_slot(const char *path, uint8_t *bytes, size_t size)
{
    size_t n = 0;
    FILE *file = fopen(path, "rb");
    if (file != NULL) {
        n = fread(bytes, 1, size, file);
        fclose(file);
    }
    return n;
}

static bool is_erased(const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] != ERASED) {
            return false;
        }
    }
    return true;
}

static void *allocate(size_t size)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, size > 0 ? size : 1u) != 0) {
        fprintf(stderr, "weft_host_board: %zu bytes of memory are not to be had\n", size);
        exit(1);
    }
    return memory;
}

static void boot(board_t *board, const options_t *options)
{
    const weft_limits_t limits = {.arena_bytes = options->ram_bytes,
                                  .row_steps = ROW_STEPS_MAX,
                                  .calls = CALLS_MAX,
                                  .macs = MACS_MAX,
                                  .elements = ELEMENTS_MAX};
    weft_tensor_info_t tensor;
    weft_error_t error;

    board->slot = active_slot(options->state_path);
    board->flash = allocate(options->slot_bytes);
    board->flash_bytes = read_slot(options->slot_path[board->slot], board->flash, options->slot_bytes);
    if (is_erased(board->flash, board->flash_bytes)) {
        set_board_fault(&board->fault, WEFT_ERR_MAGIC, "NO_PLAN", "the active slot holds no plan",
                        "write a plan made by `weft plan` into the slot and restart the board");
        return;
    }
    int status = weft_open(&board->plan, board->flash, board->flash_bytes, &limits, &error);
    set_fault(&board->fault, status);
    if (status != WEFT_OK) {
        board->fault.where = error;
        return;
    }
    board->ram = allocate(weft_arena_size(&board->plan));
    for (unsigned i = 0; i < weft_input_count(&board->plan); i++) {
        weft_input_info(&board->plan, i, &tensor);
        board->input_bytes += tensor_bytes(&tensor);
    }
    for (unsigned i = 0; i < weft_output_count(&board->plan); i++) {
        weft_output_info(&board->plan, i, &tensor);
        board->output_bytes += tensor_bytes(&tensor);
    }
    board->input = allocate(board->input_bytes);
}

/* ---------------------------------------------------------------- inference */

typedef struct {
    const int8_t *input[INPUTS_MAX];
} feed_t;

static int hand_over_row(void *ctx, unsigned input, unsigned row, int8_t *dst, size_t nbytes)
{
    const feed_t *feed = ctx;
    memcpy(dst, feed->input[input] + (size_t)row * nbytes, nbytes);
    return 0;
}

/* One inference on board->input. */
static int infer(board_t *board)
{
    feed_t feed;
    const weft_io_t io = {.ctx = &feed, .input_fn = hand_over_row, .external = feed.input};
    const int8_t *next = board->input;

    for (unsigned i = 0; i < weft_input_count(&board->plan); i++) {
        weft_tensor_info_t tensor;
        weft_input_info(&board->plan, i, &tensor);
        if (weft_input_mode(&board->plan, i) == WEFT_INPUT_RESIDENT) {
            memcpy(board->ram + weft_input_offset(&board->plan, i), next, tensor_bytes(&tensor));
        }
        feed.input[i] = next;
        next += tensor_bytes(&tensor);
    }
    return weft_run(&board->plan, board->ram, weft_arena_size(&board->plan), &io);
}

/* ---------------------------------------------------------------- server */

static volatile sig_atomic_t stopping;

static void on_stop(int signal_number)
{
    (void)signal_number;
    stopping = 1;
}

static bool receive(int client, void *bytes, size_t n)
{
    uint8_t *next = bytes;
    while (n > 0 && !stopping) {
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

static bool reply_outputs(int client, const board_t *board)
{
    bool sent = reply_head(client, 'o', board->output_bytes);
    for (unsigned i = 0; sent && i < weft_output_count(&board->plan); i++) {
        weft_tensor_info_t tensor;
        weft_output_info(&board->plan, i, &tensor);
        sent = transmit(client, board->ram + weft_output_offset(&board->plan, i), tensor_bytes(&tensor));
    }
    return sent;
}

/* Answers one request; false when the connection is to be closed. */
static bool serve_request(int client, board_t *board)
{
    uint8_t head[5];
    fault_t fault;
    if (!receive(client, head, sizeof head)) {
        return false;
    }
    uint32_t length = head[0] | (uint32_t)head[1] << 8 | (uint32_t)head[2] << 16 | (uint32_t)head[3] << 24;
    if (head[4] == 'i' && length == 1u) {
        text_t text = {.len = 0};
        add_info(&text, board);
        return reply_text(client, 'i', &text);
    }
    if (head[4] == 'r' && board->fault.where.code != WEFT_OK) {
        reply_fault(client, &board->fault);
        return false;
    }
    if (head[4] != 'r' || length - 1u != board->input_bytes) {
        set_board_fault(&fault, WEFT_ERR_ARG, "BAD_REQUEST", "the request's kind or length is wrong",
                        "ask for the board's info and send as many bytes as its inputs have");
        reply_fault(client, &fault);
        return false;
    }
    if (!receive(client, board->input, board->input_bytes)) {
        return false;
    }
    int status = infer(board);
    if (status != WEFT_OK) {
        set_fault(&fault, status);
        return reply_fault(client, &fault);
    }
    board->runs++;
    return reply_outputs(client, board);
}

/* Closing while unread bytes are left would reset the connection and lose the reply. */
static void hang_up(int client)
{
    uint8_t rest[512];
    ssize_t got = 1;
    shutdown(client, SHUT_WR);
    for (size_t drained = 0; got > 0 && drained < DRAIN_MAX && !stopping; drained += sizeof rest) {
        got = recv(client, rest, sizeof rest, 0);
    }
    close(client);
}

static int listen_on(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t length = sizeof address;
    const int yes = 1;
    int server = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (server < 0 || setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(server, (const struct sockaddr *)&address, sizeof address) != 0 || listen(server, 4) != 0 ||
        getsockname(server, (struct sockaddr *)&address, &length) != 0) {
        perror("weft_host_board: cannot listen");
        exit(1);
    }
    printf("listening on 127.0.0.1:%u\n", ntohs(address.sin_port));
    fflush(stdout);
    return server;
}

static void serve(int server, board_t *board)
{
    const struct timeval patience = {.tv_sec = CLIENT_SECONDS}, idle = {.tv_sec = 1};
    const int yes = 1;
    setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof idle);
    while (!stopping) {
        int client = accept(server, NULL, NULL);
        if (client < 0) {
            continue;
        }
        setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        while (!stopping && serve_request(client, board)) {
        }
        hang_up(client);
    }
}

/* ---------------------------------------------------------------- start */

static void usage(void)
{
    fprintf(stderr, "usage: weft_host_board --slot-a FILE --slot-b FILE --state FILE [--slot-size BYTES] [--ram BYTES] "
                    "[--port PORT]\n"
                    "  --slot-a, --slot-b  plan slots; a file that is absent is an empty slot\n"
                    "  --state             'a' or 'b': the active slot; absent: a\n"
                    "  --slot-size         bytes of a slot (default 1048576)\n"
                    "  --ram               largest arena, bytes (default 262144)\n"
                    "  --port              TCP port on 127.0.0.1; 0, the default, takes a free one\n");
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

static options_t parse(int argc, char **argv)
{
    options_t options = {.slot_bytes = DEFAULT_SLOT_BYTES, .ram_bytes = DEFAULT_RAM_BYTES};
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (i + 1 == argc) {
            usage();
        } else if (strcmp(name, "--slot-a") == 0) {
            options.slot_path[0] = value;
        } else if (strcmp(name, "--slot-b") == 0) {
            options.slot_path[1] = value;
        } else if (strcmp(name, "--state") == 0) {
            options.state_path = value;
        } else if (strcmp(name, "--slot-size") == 0) {
            options.slot_bytes = number(value, UINT32_MAX);
        } else if (strcmp(name, "--ram") == 0) {
            options.ram_bytes = (uint32_t)number(value, UINT32_MAX);
        } else if (strcmp(name, "--port") == 0) {
            options.port = (uint16_t)number(value, UINT16_MAX);
        } else {
            usage();
        }
    }
    if (options.slot_path[0] == NULL || options.slot_path[1] == NULL || options.state_path == NULL) {
        usage();
    }
    return options;
}

int main(int argc, char **argv)
{
    const options_t options = parse(argc, argv);
    struct sigaction action = {.sa_handler = on_stop};
    static board_t board;
    static text_t text;

    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    boot(&board, &options);
    add_info(&text, &board);
    printf("%s\n", text.bytes);
    int server = listen_on(options.port);
    serve(server, &board);
    close(server);
    free(board.input);
    free(board.ram);
    free(board.flash);
    return 0;
}
