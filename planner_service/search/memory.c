/* SPDX-License-Identifier: Apache-2.0 */
/* Growing arrays and hash tables within the limit that the caller set. */
#include "internal.h"
#include <stdlib.h>
#include <string.h>

static bool grow(ws_search_t *s, size_t bytes)
{
    if (bytes > (size_t)s->limits.memory_limit || s->allocated > (size_t)s->limits.memory_limit - bytes) {
        s->status = WS_NO_MEMORY;
        return false;
    }
    s->allocated += bytes;
    return true;
}

void *ws_alloc(ws_search_t *s, size_t count, size_t size)
{
    if (!grow(s, count * size)) {
        return NULL;
    }
    void *block = calloc(count ? count : 1, size);
    if (block == NULL) {
        s->allocated -= count * size;
        s->status = WS_NO_MEMORY;
    }
    return block;
}

void ws_release(ws_search_t *s, void *block, size_t count, size_t size)
{
    if (block != NULL) {
        s->allocated -= count * size;
        free(block);
    }
}

bool ws_append(ws_search_t *s, ws_vec_t *vec, const void *items, size_t count)
{
    if (vec->count + count > vec->room) {
        size_t room = vec->room ? vec->room * 2 : 16;
        while (room < vec->count + count) {
            room *= 2;
        }
        if (room > INT32_MAX || !grow(s, (room - vec->room) * vec->size)) {
            s->status = WS_NO_MEMORY;
            return false;
        }
        void *more = realloc(vec->items, room * vec->size);
        if (more == NULL) {
            s->allocated -= (room - vec->room) * vec->size;
            s->status = WS_NO_MEMORY;
            return false;
        }
        vec->items = more;
        vec->room = room;
    }
    if (count > 0) {
        memcpy((char *)vec->items + vec->count * vec->size, items, count * vec->size);
        vec->count += count;
    }
    return true;
}

bool ws_push(ws_search_t *s, ws_vec_t *vec, const void *item)
{
    return ws_append(s, vec, item, 1);
}

void ws_vec_free(ws_search_t *s, ws_vec_t *vec)
{
    ws_release(s, vec->items, vec->room, vec->size);
    vec->items = NULL;
    vec->count = vec->room = 0;
}

static size_t hash(const int32_t key[6])
{
    uint64_t h = 0;
    for (int n = 0; n < 6; n++) {
        h = (h ^ (uint32_t)key[n]) * UINT64_C(0x9E3779B97F4A7C15);
        h ^= h >> 29;
    }
    return (size_t)h;
}

static ws_slot_t *find(ws_slot_t *slots, size_t room, const int32_t key[6])
{
    size_t at = hash(key) & (room - 1);
    while (slots[at].used && memcmp(slots[at].key, key, sizeof(slots[at].key)) != 0) {
        at = (at + 1) & (room - 1);
    }
    return &slots[at];
}

ws_slot_t *ws_memo(ws_search_t *s, ws_memo_t *memo, const int32_t key[6])
{
    if (memo->count * 2 >= memo->room) {
        size_t room = memo->room ? memo->room * 2 : 1024;
        ws_slot_t *slots = ws_alloc(s, room, sizeof(*slots));
        if (slots == NULL) {
            return NULL;
        }
        for (size_t n = 0; n < memo->room; n++) {
            if (memo->slots[n].used) {
                *find(slots, room, memo->slots[n].key) = memo->slots[n];
            }
        }
        ws_release(s, memo->slots, memo->room, sizeof(*slots));
        memo->slots = slots;
        memo->room = room;
    }
    ws_slot_t *slot = find(memo->slots, memo->room, key);
    if (!slot->used) {
        memcpy(slot->key, key, sizeof(slot->key));
        memo->count++;
    }
    return slot;
}

void ws_memo_free(ws_search_t *s, ws_memo_t *memo)
{
    ws_release(s, memo->slots, memo->room, sizeof(*memo->slots));
    memo->slots = NULL;
    memo->count = memo->room = 0;
}

/* Scanned states between two looks at the clock of whoever asked: a few milliseconds. */
#define WORK_PER_LOOK (1 << 20)

bool ws_work(ws_search_t *s, int64_t amount)
{
    s->work += amount;
    if (s->work >= WORK_PER_LOOK) {
        s->work = 0;
        if (s->progress != NULL && s->progress(s->done) != 0) {
            s->status = WS_CANCELLED;
        }
    }
    return s->status == WS_OK;
}
