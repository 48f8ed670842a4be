/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search for schedules, called by solver.py. docs/planner.md says which schedules are searched and why the answer
 * is exact. All figures in bytes, rows and MACs; numbers of operators and tensors are those of the graph. Where
 * schedules are searched for their latency, "MACs" are units of cost: of rows, lines, calls and what is around them.
 */
#ifndef WEFT_SEARCH_H
#define WEFT_SEARCH_H

#include <stdbool.h>
#include <stdint.h>

/* An advance that reaches every size: one step. */
#define WS_WHOLE 65535

/* Extra MACs: any number; and what is returned if there is no schedule. Schedules may have fewer MACs than the unfused
 * one, by rows that nobody reads. */
#define WS_ANY_EXTRA INT64_MIN
#define WS_NO_EXTRA INT64_MAX

/* Receptive field along one axis: build.Field. */
typedef struct {
    int32_t stride, pad, span, factor;
} ws_field_t;

/* An operator: build.Node. Its swept and whole inputs are ws_graph_t.inputs[inputs_at ...], swept ones first; rows
 * [lo, hi) cost row_macs[macs_at + hi] - row_macs[macs_at + lo] MACs (macs_at < 0: none). */
typedef struct {
    int32_t tensor;
    int32_t rows, cols; /* of the axis its regions run over: the output's, or the input's for reductions */
    ws_field_t row_field, col_field;
    int32_t inputs_at, swept, whole;
    int32_t reduce_h, reduce_w, single, channelwise, leads;
    int64_t macs_at;
    int64_t line_cost, call_cost; /* of each row of each call, and of each call */
} ws_op_t;

/* A tensor that is not constant. `bytes` is what it costs where it is whole (0 if it is not to be counted), `producer`
 * is negative for network inputs; last_use is the number of operators for network outputs. */
typedef struct {
    int32_t height, width, channels;
    int32_t bytes;
    int32_t producer, last_read, last_use;
    int32_t output;   /* a network output */
    int32_t resident; /* a network input that is whole in the arena from the start */
    int32_t streamed; /* a network input whose rows come as its only reader takes them */
} ws_tensor_t;

typedef struct {
    int32_t op_count, tensor_count;
    const ws_op_t *ops;
    const ws_tensor_t *tensors;
    const int32_t *inputs;
    const int64_t *row_macs;
} ws_graph_t;

/* What the engine does around kernels, where costs are no MACs: all 0 where they are. By entry and step, by call, by
 * entry and row step, by run of bytes that is moved and by byte of it, by row step, by stage: costs.Around. */
typedef struct {
    int64_t visit, call, check, move, moved, row_step, stage;
} ws_around_t;

/* What is searched: see solver.Space. */
typedef struct {
    const int32_t *row_steps;
    int32_t row_step_count;
    const int32_t *col_steps; /* columns that a step adds to the last tensor of several operators */
    int32_t col_step_count;
    ws_around_t around;
    int32_t segment_ops;  /* most operators of a segment */
    int32_t partial;      /* overlaps may be kept in part, not just all or nothing */
    int32_t slice;        /* fewest channels that a sweep may make; 0: always all */
    int32_t cap;          /* most bytes that will be asked for */
    int64_t spare;        /* most MACs beyond the unfused ones that will be asked for, or WS_ANY_EXTRA */
    int64_t memory_limit; /* bytes that the search itself may take */
} ws_limits_t;

/* Called every few milliseconds with the share that is done of what was called; anything but 0 ends it. */
typedef int (*ws_progress_t)(double done);

typedef struct ws_search ws_search_t;

enum { WS_OK = 0, WS_CANCELLED = 1, WS_NO_MEMORY = 2 };

/* Finds every way to run a segment; NULL if not even the handle could be allocated. `status` is one of the above. */
ws_search_t *ws_open(const ws_graph_t *graph, const ws_limits_t *limits, ws_progress_t progress, int32_t *status);
void ws_free(ws_search_t *search);

/* Bytes that no schedule with at most `spare` extra MACs is below, found without looking at stages; -1 if there is no
 * such schedule. */
int32_t ws_bound(ws_search_t *search, int64_t spare);

/* Extra MACs that no schedule of at most `cap` bytes is below, found in the same way; WS_NO_EXTRA if there is no such
 * schedule. */
int64_t ws_ahead(ws_search_t *search, int32_t cap);

/* What a run is for: any schedule within its limits, the one of fewest MACs, all of them, or those near the fewest. */
enum { WS_ANY = 0, WS_FEWEST = 1, WS_ALL = 2, WS_NEAR = 3 };

/*
 * Finds stages of at most `cap` bytes and, with the stages before, at most `spare` extra MACs (or WS_ANY_EXTRA), and
 * stages of one operator and one step up to `layers_cap` bytes, besides those of the runs before (of which WS_ALL keeps
 * none). `aim` lets it leave out stages that are of no use; ws_exact says whether none were. Returns a status.
 */
int32_t ws_run(ws_search_t *search, int32_t cap, int32_t aim, int32_t layers_cap, int64_t spare,
               ws_progress_t progress);
int32_t ws_exact(const ws_search_t *search);

/*
 * Of the stages found: fewest MACs beyond the unfused ones with at most `cap` bytes, then the fewest kernel calls, then
 * the least memory. A stage of more than `tight` bytes whose output overlaps its input counts as `weight` MACs more:
 * such stages are hard to pack. `deep`: outputs that overlap each other in a row, each starting below the one before,
 * have to fit too. Writes the schedule into `out`: stages, then for each [begin, end, overlap, memory, tile, segments],
 * and for each segment [begin, end, row advance, column advance, slice, rows kept by each operator...]. Returns the
 * words written, 0 if nothing fits, or -1 if `room` words or the memory are not enough.
 */
int32_t ws_least_macs(ws_search_t *search, int32_t cap, int32_t tight, int64_t weight, bool deep, int64_t *extra,
                      int32_t *out, int32_t room);

/* Of the stages found: the least memory of a schedule with at most `extra` MACs beyond the unfused ones; -1 if there is
 * none. */
int32_t ws_least_memory(ws_search_t *search, int64_t extra, bool deep);

/* Of the stages found: the least limit above `cap` with which ws_least_macs finds fewer MACs; INT32_MAX if none does.
 */
int32_t ws_next_memory(ws_search_t *search, int32_t cap, bool deep);

/* Counts for reports: options, states kept, states tried, stages. */
void ws_statistics(const ws_search_t *search, int64_t counts[4]);

#endif
