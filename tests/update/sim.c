/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts. A device with simulated flash is taken from every start state through every kind of update, and power is
 * cut at every operation in every way (flash.h), then possibly once more on the way back. It has to come back each
 * time with a plan that was signed and is whole, the old one or the new one, has to finish the update, and take
 * another. What the core must do is stated here by an independent model: what was confirmed stays; what was not runs
 * three times at most; nothing but known plans is ever handed to the engine.
 *
 * Nothing is replayed: at each operation of a run the device is saved, cut in one way after the other, and what follows
 * is lived through at once, deeper on the stack; then the run goes on. What follows a power-up depends on flash, the
 * model and the luck of weak places alone, so a power-up that was once seen to end well need not be lived through
 * again.
 *
 *   sim PLANS [--every N] [--large-every N] [--pairs-every N] [--shard I --shards N] [--wear N] [--stop]
 * N: take one case of N, 0 none; --large-every is for the geometry of large sectors. Pairs are on the small one: one of
 * N first cuts, and of those one of N second ones.
 * Prints one line of JSON. Exits 1 if a rule was broken.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../module/src/update/update_internal.h"
#include "flash.h"
#include "sha256.h"

enum { FIRST, OLD, NEW, DELTA, NEXT, WRONG, PLANS, NO_PLAN = PLANS };
enum { BUFFER = 512, ARENA = 4096, CHUNK = 300, CUTS_MAX = 2, CYCLES_MAX = 60, BOOTS_AT_END = 4 };

/* What is to become of the device. */
typedef enum { UPDATE, UPDATE_COPY, CORRUPT, GIVE_UP, FAIL_SELFTEST, NEVER_CONFIRM, HANG, GOALS } goal_t;
static const char *const goal_name[GOALS] = {
    "full", "delta", "damaged on the way", "given up", "self-test fails", "never confirmed", "hangs"};

/* Where it starts. */
typedef enum { VIRGIN, ADOPTED, ADOPTED_B, FALLBACK, STAGED, REVERTED, PARTIAL, RESUMED, TRIED, STATES } state_t;
static const char *const state_name[STATES] = {"virgin",   "one plan",      "one plan in b", "two plans",  "staged",
                                               "reverted", "partial other", "partial, same", "tried twice"};

enum { LEVELS = 6 };
static const char *const level_name[LEVELS] = {"after reset", "1", "half", "n-2", "n-1", "n"};

typedef struct {
    const char *name;
    weft_flash_t slot, state;
    bool write_once;
} geometry_t;

/* Erased flash reads as 0x00 on the first, as on several parts. */
#define FLASH(bytes, sector_bytes, unit, blank)                                                                        \
    {                                                                                                                  \
        .size = bytes, .sector = sector_bytes, .write = unit, .erased = blank                                          \
    }

static const geometry_t geometries[] = {
    {"2K/8 write-once", FLASH(6144, 2048, 8, 0xff), FLASH(4096, 2048, 8, 0xff), true},
    {"4K/8", FLASH(8192, 4096, 8, 0x00), FLASH(8192, 4096, 8, 0x00), false},
    {"128K/32", FLASH(131072, 131072, 32, 0xff), FLASH(262144, 131072, 32, 0xff), false},
};
enum { GEOMETRIES = sizeof geometries / sizeof geometries[0] };

typedef struct {
    const uint8_t *bytes;
    uint32_t len, head_len, version;
    uint8_t digest[32];
} plan_t;

/* What must be true, whatever the journal says. */
typedef struct {
    int active;      /* plan that was confirmed */
    unsigned slot;   /* where it is */
    uint32_t floor;  /* highest version that was confirmed */
    bool confirming; /* a confirmation was begun; the next boot tells whether it counts */
    unsigned runs;   /* of the target since it was staged */
    bool trial;      /* the target runs */
    int running;
} model_t;

typedef struct {
    flash_t flash;
    weft_update_t u;
    model_t model;
    _Alignas(8) uint8_t buffer[BUFFER];
    _Alignas(64) uint8_t arena[ARENA];
} device_t;

static plan_t plans[PLANS];
static uint8_t key[72];
static weft_update_hal_t hal;
static weft_update_config_t cfg;
static device_t device, saved[CUTS_MAX];
static goal_t goal;
static int target;
static unsigned tries_at_start;
static bool damage; /* bytes change on the way */

/* ---------------------------------------------------------------- the device's surroundings */

/* The same few messages are hashed over and over: their bytes are compared, and the known hash given. */
enum { MESSAGE = 8192, MESSAGES = 256 };
static struct {
    uint32_t len;
    uint8_t bytes[MESSAGE], hash[32];
} known_hash[MESSAGES], message;

static int hash_init(void *ctx)
{
    (void)ctx;
    message.len = 0;
    return 0;
}

static int hash_update(void *ctx, const void *data, uint32_t len)
{
    (void)ctx;
    if (len > MESSAGE - message.len) {
        return -1;
    }
    memcpy(message.bytes + message.len, data, len);
    message.len += len;
    return 0;
}

static uint64_t mix(uint64_t h, const void *data, size_t len)
{
    const uint8_t *p = data;
    uint64_t lanes[4] = {h, h + 1u, h + 2u, h + 3u}, word;
    for (; len >= 32; len -= 32) {
        for (unsigned i = 0; i < 4; i++, p += 8) {
            memcpy(&word, p, 8);
            lanes[i] = (lanes[i] ^ word) * 0x9e3779b97f4a7c15u;
            lanes[i] ^= lanes[i] >> 29;
        }
    }
    h = lanes[0] + 3u * lanes[1] + 5u * lanes[2] + 7u * lanes[3];
    for (; len > 0; len--, p++) {
        h = (h ^ *p) * 0x9e3779b97f4a7c15u;
    }
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

static int hash_finish(void *ctx, uint8_t hash[32])
{
    (void)ctx;
    unsigned place = (unsigned)(mix(message.len, message.bytes, message.len) % MESSAGES);
    if (known_hash[place].len != message.len || memcmp(known_hash[place].bytes, message.bytes, message.len) != 0) {
        sha256_t sha;
        sha256_init(&sha);
        sha256_update(&sha, message.bytes, message.len);
        sha256_finish(&sha, message.hash);
        known_hash[place] = message;
    }
    memcpy(hash, known_hash[place].hash, 32);
    return 0;
}

/* Signatures were made by the planner's signing code; here only those are good. tests/test_update.py does it for real.
 */
static int verify(void *ctx, const uint8_t *public, const uint8_t *hash, const uint8_t *signature)
{
    (void)ctx;
    for (unsigned i = 0; i < PLANS; i++) {
        const uint8_t *value = plans[i].bytes + plans[i].head_len - 64;
        if (memcmp(hash, plans[i].digest, 32) == 0 && memcmp(signature, value, 64) == 0 && public == key) {
            return 0;
        }
    }
    return -1;
}

/* Which plan stands at these bytes, whole. */
static int identify(const uint8_t *bytes)
{
    for (int i = 0; i < PLANS; i++) {
        if (memcmp(bytes, plans[i].bytes, plans[i].len) == 0) {
            return i;
        }
    }
    return NO_PLAN;
}

static void cut_here(unsigned area, uint32_t offset, const void *src, uint32_t len, unsigned kinds);

/* A moment at which power can be cut that is no operation of flash: in one way only. */
static void tick(void)
{
    cut_here(AREAS, 0, NULL, 0, 1);
}

static int program(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    cut_here(area, offset, src, len, CUT_KINDS);
    return flash_program(ctx, area, offset, src, len);
}

static int erase(void *ctx, unsigned area, uint32_t offset)
{
    cut_here(area, offset, NULL, 0, CUT_KINDS);
    return flash_erase(ctx, area, offset);
}

int __real_weft_run(const weft_plan_t *plan, void *ram, size_t len, const weft_io_t *io);
int __wrap_weft_run(const weft_plan_t *plan, void *ram, size_t len, const weft_io_t *io);

/* Every execution goes through here. */
int __wrap_weft_run(const weft_plan_t *plan, void *ram, size_t len, const weft_io_t *io)
{
    int which = identify(plan->bytes);
    flash_t *f = &device.flash;
    if (which == NO_PLAN) {
        flash_broken(f, "runs bytes that are no signed plan");
        return WEFT_ERR_ABORTED;
    }
    tick();
    if (which == target && which != device.model.active) {
        device.model.runs++;
        if (device.model.runs > WEFT_UPDATE_TRIES) {
            flash_broken(f, "runs an unconfirmed plan more than three times");
        }
        if (goal == HANG) {
            longjmp(*f->power, 1);
        }
    }
    int r = __real_weft_run(plan, ram, len, io);
    tick();
    return r;
}

/* ---------------------------------------------------------------- the model's view of a boot */

static void lock(void)
{
    model_t *m = &device.model;
    device.flash.locked = 0;
    if (m->active != NO_PLAN && !m->confirming) {
        device.flash.locked |= 1u << m->slot;
    }
    if (m->trial) {
        device.flash.locked |= 1u << (1u - m->slot);
    }
}

static void confirmed(unsigned slot)
{
    model_t *m = &device.model;
    m->active = target;
    m->slot = slot;
    m->confirming = false;
    m->trial = false;
    if (plans[target].version > m->floor) {
        m->floor = plans[target].version;
    }
    lock();
}

/* ---------------------------------------------------------------- power-ups that end well */

/* Open addressing; keys of 64 bits, 0 for none. Forgotten with every configuration. */
enum { KNOWN_MIN = 1 << 12, VISITS_MAX = 4 * CYCLES_MAX };
static uint64_t *known, visits[VISITS_MAX];
static size_t known_size, known_count;
static unsigned visit_count;
static bool remembering, ends_well;

static bool is_known(uint64_t k)
{
    for (size_t i = (size_t)k & (known_size - 1u); known[i] != 0; i = (i + 1u) & (known_size - 1u)) {
        if (known[i] == k) {
            return true;
        }
    }
    return false;
}

static void remember(uint64_t k)
{
    if (2u * known_count >= known_size) {
        uint64_t *old = known;
        size_t count = known_size;
        known_size = 2u * count;
        known_count = 0;
        known = calloc(known_size, sizeof *known);
        if (known == NULL) {
            abort();
        }
        for (size_t i = 0; i < count; i++) {
            if (old[i] != 0) {
                remember(old[i]);
            }
        }
        free(old);
    }
    size_t i = (size_t)k & (known_size - 1u);
    while (known[i] != 0 && known[i] != k) {
        i = (i + 1u) & (known_size - 1u);
    }
    known_count += known[i] == 0;
    known[i] = k;
}

static void forget_all(void)
{
    free(known);
    known_size = KNOWN_MIN;
    known_count = 0;
    known = calloc(known_size, sizeof *known);
    if (known == NULL) {
        abort();
    }
}

/*
 * Notes a power-up with what its outcome depends on; true if it is known to end well. The luck of the first one after a
 * cut is the case's own, later on it follows from the state.
 */
static bool visit(void)
{
    flash_t *f = &device.flash;
    const model_t *m = &device.model;
    const uint32_t rest[] = {(uint32_t)m->active, m->slot,          m->floor, m->confirming, m->runs,       m->trial,
                             (uint32_t)goal,      (uint32_t)target, damage,   f->cuts,       tries_at_start};
    if (!remembering) {
        return false;
    }
    uint64_t k = mix(1, rest, sizeof rest);
    bool special = false;
    for (unsigned i = 0; i < AREAS; i++) {
        const area_t *a = &f->area[i];
        k = mix(k, a->bytes, a->size);
        k = mix(k, a->units, a->size / a->geometry.write);
        special = special || a->special != 0;
    }
    if (visit_count > 0) {
        f->random = (uint32_t)(k >> 16) | 1u;
    } else if (special) {
        k = mix(k, &f->random, sizeof f->random);
    }
    if (visit_count < VISITS_MAX) {
        visits[visit_count++] = k | 1u;
    }
    return is_known(k | 1u);
}

/* ---------------------------------------------------------------- a boot */

/* Virgin devices put their first plan into slot a. */
static void boot(void)
{
    flash_t *f = &device.flash;
    model_t *m = &device.model;
    weft_plan_t plan;
    weft_boot_t result;
    weft_update_status_t status;
    m->trial = false;
    lock();
    if (weft_update_init(&device.u, &cfg) != WEFT_OK) {
        flash_broken(f, "init fails");
        return;
    }
    int r = weft_update_boot(&device.u, &plan, &result);
    weft_update_status(&device.u, &status);
    m->running = NO_PLAN;
    if (r != WEFT_OK) {
        if (m->active != NO_PLAN) {
            flash_broken(f, "boots nothing although a plan was confirmed");
        }
        return;
    }
    int which = identify(plan.bytes);
    m->running = which;
    if (which == WRONG) {
        flash_broken(f, "hands out a plan that fails its self-test");
    }
    if (which == NO_PLAN || plan.bytes != f->area[result.slot].bytes) {
        flash_broken(f, "hands out bytes that are no signed plan");
        return;
    }
    if (result.trial != 0) {
        if (which != target || (result.slot == m->slot && m->active != NO_PLAN)) {
            flash_broken(f, "tries a plan that nobody staged");
        }
        m->trial = true;
        if (m->active == NO_PLAN) {
            m->slot = 1u - result.slot;
        }
        m->confirming = false;
    } else if (which != m->active) {
        if (!m->confirming || which != target) {
            flash_broken(f, "boots another plan than the confirmed one");
        }
        confirmed(result.slot);
    } else {
        m->confirming = false;
    }
    lock();
    if (status.floor != m->floor) {
        flash_broken(f, "the version floor is not that of the confirmed plans");
    }
}

/* ---------------------------------------------------------------- the host's part of an update */

static void expect(int r, const char *rule)
{
    if (r != WEFT_OK) {
        flash_broken(&device.flash, rule);
    }
}

/* Sends up to `stop` bytes, as a host does that knows nothing but the replies. */
static int send_plan(const plan_t *p, uint32_t flags, uint32_t stop, uint32_t *token)
{
    weft_transfer_t t;
    int r = weft_update_begin(&device.u, p->bytes, p->head_len, flags, &t, NULL);
    *token = t.token;
    while (r == WEFT_OK && t.token != 0 && t.next < stop) {
        uint32_t n = t.copying != 0 ? 0 : (t.until < stop ? t.until : stop) - t.next;
        n = n < CHUNK ? n : CHUNK;
        uint8_t chunk[CHUNK];
        memcpy(chunk, p->bytes + t.next, n);
        if (damage && n > 0) {
            chunk[0] ^= 1u;
        }
        r = weft_update_write(&device.u, *token, t.next, chunk, n, &t);
    }
    return r;
}

/* Transfer, stage and command the trial. Returns false where the device says that the plan was tried before. */
static bool stage(void)
{
    uint32_t token;
    const plan_t *p = &plans[target];
    int r = send_plan(p, goal == UPDATE_COPY ? WEFT_UPDATE_COPY : 0, p->len, &token);
    if (r == WEFT_ERR_TRIED) {
        return false;
    }
    expect(r, "a good plan is not accepted");
    if (r == WEFT_OK && token != 0) {
        r = weft_update_finish(&device.u, token, NULL);
        if (r == WEFT_ERR_HASH && goal == CORRUPT) {
            /* Also what came before a cut may be damaged: it must not be resumed a second time. */
            damage = false;
            return true;
        }
        expect(r, "a good transfer does not finish");
        if (damage) {
            flash_broken(&device.flash, "a damaged transfer finishes");
        }
    }
    expect(weft_update_test(&device.u), "a staged plan cannot be tried");
    return true;
}

/* From wherever the device is to the goal. Every return to here after a cut starts with a boot. */
static void pursue(bool powered)
{
    flash_t *f = &device.flash;
    model_t *m = &device.model;
    for (unsigned cycle = 0; f->broken == NULL; cycle++) {
        if (cycle > CYCLES_MAX) {
            flash_broken(f, "never reaches the goal");
            return;
        }
        if (cycle > 0 || !powered) {
            ends_well = visit();
            if (ends_well) {
                return;
            }
            boot();
        }
        bool good = goal == UPDATE || goal == UPDATE_COPY || goal == CORRUPT;
        if (f->broken != NULL || (good && m->active == target && !m->confirming)) {
            return;
        }
        if (m->trial && good) {
            unsigned slot = 1u - m->slot;
            m->confirming = true;
            lock();
            expect(weft_update_confirm(&device.u), "a running trial cannot be confirmed");
            confirmed(slot);
            return;
        }
        if (goal == GIVE_UP) {
            uint32_t token;
            if (f->cuts == 0 && !m->trial && m->active != target) {
                int r = send_plan(&plans[target], 0, plans[target].len * 2u / 3u, &token);
                expect(r == WEFT_ERR_TRIED ? WEFT_OK : r, "a good plan is not accepted");
            }
            return;
        }
        if (m->trial) {
            continue;
        }
        if (!stage()) {
            if (!good) {
                return;
            }
            if (f->cuts + tries_at_start < WEFT_UPDATE_TRIES) {
                flash_broken(f, "a good plan is reverted");
            }
            m->runs = 0;
            expect(weft_update_erase(&device.u), "a reverted plan cannot be erased");
        }
    }
}

/* What comes after a case, without cuts: the device keeps its plan, and takes the next one. */
static void further_update(void)
{
    model_t *m = &device.model;
    ends_well = visit();
    if (ends_well) {
        return;
    }
    /* What weak places said once, they must not take back. */
    m->trial = false;
    for (unsigned i = 0; i < BOOTS_AT_END && !m->trial; i++) {
        boot();
    }
    if (m->trial && goal != GIVE_UP) {
        flash_broken(&device.flash, "tries a plan again after the end");
    } else if (m->trial) {
        expect(weft_update_revert(&device.u), "a trial cannot be given up");
        boot();
    }
    damage = false;
    goal = UPDATE;
    target = NEXT;
    m->runs = 0;
    pursue(true);
    for (unsigned i = 0; i < BOOTS_AT_END && !ends_well; i++) {
        boot();
        if (m->running != NEXT || m->trial) {
            flash_broken(&device.flash, "does not run the further update");
        }
    }
}

/* ---------------------------------------------------------------- start states */

static void put_plan(unsigned slot, int which)
{
    flash_t *f = &device.flash;
    memcpy(f->area[slot].bytes, plans[which].bytes, plans[which].len);
}

static void adopt(unsigned slot, int which)
{
    put_plan(slot, which);
    expect(weft_update_init(&device.u, &cfg), "init fails");
    expect(weft_update_adopt(&device.u, slot), "a plan is not adopted");
    device.model.active = which;
    device.model.slot = slot;
    device.model.floor = plans[which].version;
}

static void update_to(int which)
{
    int wanted = target;
    goal_t kind = goal;
    target = which;
    goal = UPDATE;
    pursue(false);
    target = wanted;
    goal = kind;
    device.model.runs = 0;
}

static void prepare(state_t state, unsigned level)
{
    flash_t *f = &device.flash;
    uint32_t token;
    memset(&device.model, 0, sizeof device.model);
    device.model.active = device.model.running = NO_PLAN;
    f->locked = 0;
    f->broken = NULL;
    damage = false;
    tries_at_start = 0;
    flash_scramble(f);
    if (state == FALLBACK) {
        adopt(0, FIRST);
        update_to(OLD);
    } else if (state != VIRGIN) {
        adopt(state == ADOPTED_B ? 1u : 0u, OLD);
    }
    int wanted = target;
    goal_t kind = goal;
    boot();
    if (state == STAGED) {
        expect(send_plan(&plans[NEXT], 0, plans[NEXT].len, &token), "cannot send");
        expect(weft_update_finish(&device.u, token, NULL), "cannot finish");
    } else if (state == REVERTED) {
        goal = FAIL_SELFTEST;
        target = WRONG;
        pursue(true);
    } else if (state == PARTIAL || state == RESUMED) {
        expect(send_plan(&plans[state == PARTIAL ? NEXT : target], 0, plans[target].len * 2u / 3u, &token),
               "cannot send");
        if (state == PARTIAL || level > 1) {
            expect(weft_update_abort(&device.u, token), "cannot abort");
        }
    } else if (state == TRIED) {
        /* Two runs that ended before they could be confirmed. */
        goal = NEVER_CONFIRM;
        tries_at_start = 2;
        (void)stage();
        boot();
        boot();
    }
    target = wanted;
    goal = kind;
    if (state == REVERTED) {
        device.model.runs = 0;
    }
    if (level > 0 && device.u.token == 0) {
        /* Up to the wanted place, in the power cycle in which the case begins. */
        const weft_flash_t *flash = &hal.state;
        uint32_t places = flash->sector / weft_up(WEFT_STATE_SIZE, flash->write);
        uint32_t place = level == 1 ? 2 : level == 2 ? places / 2u : places - 10u + 2u * level;
        while (!device.u.fresh || device.u.place != place) {
            weft_journal_t same = device.u.now;
            expect(weft_journal_append(&device.u, &same), "cannot append");
        }
    }
}

/* ---------------------------------------------------------------- cases */

typedef struct {
    uint32_t at; /* operation since the start or the cut before */
    cut_t kind;
} cut_at_t;

/* `same`: cases after whose cuts the device was just as after those of another one. */
static uint64_t cases, pairs, failures, same;
static unsigned shard, shards = 1, configuration;
static bool stop_at_failure, stopped;
static const geometry_t *here;
static state_t started;
static unsigned filled;

/* Cuts made so far, and how many there may be; `take[n]`: one of how many cases with n + 1 cuts is taken. */
static cut_at_t cuts[CUTS_MAX];
static unsigned depth, deepest, take[CUTS_MAX];
static uint32_t lot;

static void judge(void)
{
    static const char *const kind_name[CUT_KINDS] = {"before", "after", "torn", "blank", "weak", "fault"};
    cases++;
    pairs += depth > 1;
    if (device.flash.broken == NULL || failures++ >= 20) {
        return;
    }
    stopped = stop_at_failure;
    fprintf(stderr, "%s: %s; %s; %s; journal %s;", device.flash.broken, here->name, goal_name[goal],
            state_name[started], level_name[filled]);
    for (unsigned i = 0; i < depth; i++) {
        fprintf(stderr, " cut %u %s", cuts[i].at, kind_name[cuts[i].kind]);
    }
    fprintf(stderr, "\n");
}

/* From the present state, with power or without, to the goal and through the further update. */
static void live(bool powered)
{
    flash_t *f = &device.flash;
    jmp_buf power;
    goal_t kind = goal;
    int wanted = target;
    if (depth < deepest) {
        cuts[depth].at = 0;
    }
    visit_count = 0;
    remembering = depth == deepest;
    ends_well = false;
    f->power = &power;
    if (setjmp(power) != 0) {
        pursue(false);
    } else {
        pursue(powered);
    }
    unsigned limit = deepest;
    deepest = depth; /* no more cuts */
    if (depth < limit) {
        visit_count = 0;
        remembering = true;
        f->random = 1u;
    }
    if (f->broken == NULL && !ends_well) {
        further_update();
    }
    same += ends_well && visit_count == 1;
    for (unsigned i = 0; i < visit_count && f->broken == NULL; i++) {
        remember(visits[i]);
    }
    deepest = limit;
    goal = kind;
    target = wanted;
    judge();
}

static void copy_device(device_t *to, const device_t *from)
{
    flash_t flash = to->flash;
    flash_copy(&flash, &from->flash);
    flash.random = from->flash.random;
    flash.cuts = from->flash.cuts;
    flash.power = from->flash.power;
    flash.broken = from->flash.broken;
    flash.locked = from->flash.locked;
    to->u = from->u;
    to->model = from->model;
    memcpy(to->buffer, from->buffer, BUFFER);
    memcpy(to->arena, from->arena, ARENA);
    to->flash = flash;
}

/* Whether a case is taken: one of `n`, without a pattern. */
static bool drawn(unsigned n)
{
    lot = lot * 1664525u + 1013904223u;
    return n != 0 && (lot >> 8) % n == 0;
}

/* Begins an operation in which power is cut. */
static void power_off(cut_t kind, unsigned area, uint32_t offset, const void *src, uint32_t len)
{
    flash_t *f = &device.flash;
    jmp_buf off;
    f->power = &off;
    f->cut = kind;
    f->cut_now = true;
    f->random = (lot + (uint32_t)kind) * 2654435761u | 1u;
    if (setjmp(off) != 0) {
        return;
    }
    if (area == AREAS) {
        flash_tick(f);
    } else if (src != NULL) {
        (void)flash_program(f, area, offset, src, len);
    } else {
        (void)flash_erase(f, area, offset);
    }
}

/* The operation is about to happen: every way in which power is cut at it, and what comes of that. AREAS: no flash. */
static void cut_here(unsigned area, uint32_t offset, const void *src, uint32_t len, unsigned kinds)
{
    flash_t *f = &device.flash;
    if (depth >= deepest || stopped || f->broken != NULL) {
        return;
    }
    const unsigned level = depth;
    const goal_t kind = goal;
    const int wanted = target;
    const bool damaged = damage;
    cut_at_t *cut = &cuts[level];
    bool kept = false;
    for (unsigned k = 0; k < kinds && !stopped; k++) {
        /* The way to pairs is a case of its own. */
        bool on = level + 1u < deepest && drawn(take[level + 1u]);
        if (!drawn(take[level]) && !on) {
            continue;
        }
        if (!kept) {
            copy_device(&saved[level], &device);
            kept = true;
        }
        cut->kind = (cut_t)k;
        power_off(cut->kind, area, offset, src, len);
        unsigned limit = deepest;
        depth = level + 1u;
        deepest = on ? limit : depth;
        live(false);
        deepest = limit;
        depth = level;
        copy_device(&device, &saved[level]);
        goal = kind;
        target = wanted;
        damage = damaged;
        remembering = ends_well = false;
    }
    cut->at++;
}

/* A configuration without cuts, and with those that were drawn. */
static void run_configuration(unsigned which, state_t state, unsigned level)
{
    here = &geometries[which];
    started = state;
    filled = level;
    depth = deepest = 0;
    remembering = false;
    forget_all();
    device.flash.random = configuration * 2654435761u | 1u;
    prepare(state, level);
    if (device.flash.broken != NULL) {
        judge();
        return;
    }
    if (level == 0) {
        device.u.fresh = 0;
    }
    device.flash.cuts = 0;
    device.flash.random = 2654435761u;
    damage = goal == CORRUPT;
    deepest = take[1] != 0 ? 2 : take[0] != 0 ? 1 : 0;
    lock();
    live(device.u.fresh != 0);
}

static void run_geometry(unsigned which)
{
    for (int kind = 0; kind < GOALS; kind++) {
        static const int target_of[GOALS] = {NEW, DELTA, NEW, NEW, WRONG, NEW, NEW};
        for (int state = 0; state < STATES; state++) {
            for (unsigned level = 0; level < LEVELS && !stopped; level++) {
                if (configuration++ % shards != shard) {
                    continue;
                }
                goal = (goal_t)kind;
                target = target_of[kind];
                run_configuration(which, (state_t)state, level);
            }
        }
    }
}

/* ---------------------------------------------------------------- wear */

/* Erases of the sector that had most or, with `least`, fewest; of the first `sectors` of an area. */
static uint32_t erased(unsigned area, uint32_t sectors, bool least)
{
    const uint32_t *erases = device.flash.area[area].erases;
    uint32_t found = erases[0];
    for (uint32_t i = 1; i < sectors; i++) {
        found = (erases[i] < found) == least ? erases[i] : found;
    }
    return found;
}

/* Updates to and fro, with a reset after each staging. */
static void wear(unsigned updates)
{
    depth = deepest = 0;
    remembering = false;
    goal = UPDATE;
    target = NEW;
    prepare(ADOPTED, 0);
    for (unsigned i = 0; i < AREAS; i++) {
        const area_t *a = &device.flash.area[i];
        memset(a->erases, 0, a->size / a->geometry.sector * sizeof *a->erases);
    }
    for (unsigned i = 0; i < updates && device.flash.broken == NULL; i++) {
        update_to(i % 2u != 0 ? DELTA : NEW);
    }
    weft_update_status_t status;
    weft_update_status(&device.u, &status);
    /* Sectors behind the plan's end are never erased. */
    uint32_t sectors = weft_up(plans[NEW].len, hal.slot.sector) / hal.slot.sector,
             state = hal.state.size / hal.state.sector;
    uint32_t a = erased(WEFT_AREA_SLOT_A, sectors, false), b = erased(WEFT_AREA_SLOT_B, sectors, false);
    uint32_t c = erased(WEFT_AREA_SLOT_A, sectors, true), d = erased(WEFT_AREA_SLOT_B, sectors, true);
    printf(
        "\"updates\": %u, \"slot_sector_erases\": %u, \"slot_sector_erases_least\": %u, \"state_sector_erases\": %u, "
        "\"state_sector_erases_least\": %u, \"counted_slot\": %u, \"counted_state\": %u, ",
        updates, a > b ? a : b, c < d ? c : d, erased(WEFT_AREA_STATE, state, false),
        erased(WEFT_AREA_STATE, state, true), status.slot_erases, status.state_erases);
    if (device.flash.broken != NULL) {
        failures++;
        fprintf(stderr, "wear: %s\n", device.flash.broken);
    }
}

/* ---------------------------------------------------------------- main */

static bool load(const char *path)
{
    static _Alignas(8) uint8_t file[1u << 16];
    FILE *in = fopen(path, "rb");
    size_t len = in != NULL ? fread(file, 1, sizeof file, in) : 0, at = 80;
    if (in != NULL) {
        fclose(in);
    }
    if (len < at || weft_rd32(file) != 0x31544c50u || weft_rd32(file + 4) != PLANS) {
        return false;
    }
    memcpy(key, file + 8, sizeof key);
    for (unsigned i = 0; i < PLANS; i++) {
        plan_t *p = &plans[i];
        p->len = weft_rd32(file + at);
        p->bytes = file + at + 8;
        at += 8u + p->len;
        if (at > len) {
            return false;
        }
        p->head_len = weft_rd16(p->bytes + WEFT_HEADER_HEADER_LEN) + WEFT_SIGNATURE_LEN;
        p->version = weft_rd32(p->bytes + WEFT_HEADER_PLAN_VERSION);
        (void)hash_init(NULL);
        (void)hash_update(NULL, p->bytes, p->head_len - WEFT_SIGNATURE_LEN);
        (void)hash_finish(NULL, p->digest);
    }
    return true;
}

int main(int argc, char **argv)
{
    unsigned every = 1, large_every = 1, pairs_every = 0, updates = 0;
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--stop") == 0) {
            stop_at_failure = true;
        } else if (i + 1 < argc) {
            unsigned value = (unsigned)strtoul(argv[i + 1], NULL, 10);
            every = strcmp(argv[i], "--every") == 0 ? value : every;
            large_every = strcmp(argv[i], "--large-every") == 0 ? value : large_every;
            shard = strcmp(argv[i], "--shard") == 0 ? value : shard;
            shards = strcmp(argv[i], "--shards") == 0 ? value : shards;
            pairs_every = strcmp(argv[i], "--pairs-every") == 0 ? value : pairs_every;
            updates = strcmp(argv[i], "--wear") == 0 ? value : updates;
            i++;
        }
    }
    if (argc < 2 || !load(argv[1])) {
        fprintf(stderr, "usage: sim PLANS [--every N] [--large-every N] [--pairs-every N] [--shard I --shards N] "
                        "[--wear N] [--stop]\n");
        return 2;
    }
    hal = (weft_update_hal_t){.ctx = &device.flash,
                              .read = flash_read,
                              .program = program,
                              .erase = erase,
                              .mapped = flash_mapped,
                              .sha256_init = hash_init,
                              .sha256_update = hash_update,
                              .sha256_finish = hash_finish,
                              .verify_p256 = verify};
    cfg = (weft_update_config_t){.hal = &hal,
                                 .buffer = device.buffer,
                                 .buffer_len = BUFFER,
                                 .arena = device.arena,
                                 .arena_len = ARENA,
                                 .key = {key},
                                 .mark_bytes = 1};
    printf("{");
    for (unsigned i = 0; i < GEOMETRIES && !stopped; i++) {
        hal.slot = geometries[i].slot;
        hal.state = geometries[i].state;
        bool made = flash_new(&device.flash, &hal.slot, &hal.state, geometries[i].write_once) == 0;
        for (unsigned k = 0; k < CUTS_MAX; k++) {
            made = made && flash_new(&saved[k].flash, &hal.slot, &hal.state, geometries[i].write_once) == 0;
        }
        if (!made) {
            return 2;
        }
        clock_t start = clock();
        uint64_t before = cases;
        take[0] = i + 1u < GEOMETRIES ? every : large_every;
        take[1] = i == 0 ? pairs_every : 0;
        run_geometry(i);
        fprintf(stderr, "%s: %llu cases in %.1f s\n", geometries[i].name, (unsigned long long)(cases - before),
                (double)(clock() - start) / CLOCKS_PER_SEC);
        if (i == 0 && updates > 0 && !stopped) {
            wear(updates);
        }
        flash_free(&device.flash);
        for (unsigned k = 0; k < CUTS_MAX; k++) {
            flash_free(&saved[k].flash);
        }
    }
    free(known);
    printf("\"cuts\": %llu, \"pairs\": %llu, \"same\": %llu, \"failures\": %llu}\n", (unsigned long long)cases,
           (unsigned long long)pairs, (unsigned long long)same, (unsigned long long)failures);
    return failures > 0;
}
