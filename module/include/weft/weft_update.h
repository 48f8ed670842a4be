/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * @brief Weft update core: two plan slots, a state journal, and the way of a plan from a transport into a run.
 *
 * No heap, no globals, no operating system, no cryptography of its own: flash, SHA-256 and ECDSA P-256 enter through
 * weft_update_hal_t. The caller owns every byte. docs/update.md has states, power cuts and threats.
 *
 * Life of a plan: weft_update_begin() .. weft_update_write() .. weft_update_finish() -> STAGED; weft_update_test() ->
 * TRIAL; weft_update_boot() counts the try, verifies, self-tests and hands the plan out; weft_update_healthy() or
 * weft_update_confirm() -> active. Any failure leads back to the plan that was active before.
 *
 * Not re-entrant: call the functions of one weft_update_t from one thread, or hold a lock. Inference itself needs no
 * lock: an open plan's slot is never written.
 */
#ifndef WEFT_WEFT_UPDATE_H
#define WEFT_WEFT_UPDATE_H

#include "weft/weft.h"

#ifdef __cplusplus
extern "C" {
#endif

/** 1: plans without a signature are accepted. For development only: whoever reaches the device installs what he likes.
 */
#ifndef WEFT_UPDATE_ALLOW_UNSIGNED
#define WEFT_UPDATE_ALLOW_UNSIGNED 0
#endif

/** Runs that a plan gets before it must have been confirmed. */
#define WEFT_UPDATE_TRIES 3

/** Bytes of a header with its section table (@p sections rows) and signature record: what weft_update_begin() takes. */
#define WEFT_UPDATE_HEAD_LEN(sections) (144u + 48u * (sections) + 72u)
/** The longest such header. */
#define WEFT_UPDATE_HEAD_MAX WEFT_UPDATE_HEAD_LEN(16u)

/** No slot. */
#define WEFT_SLOT_NONE 0xffu

/** Flash areas. The numbers of the slots are those that the status shows. */
enum { WEFT_AREA_SLOT_A = 0, WEFT_AREA_SLOT_B = 1, WEFT_AREA_STATE = 2 };

/** Geometry of an area. */
typedef struct {
    uint32_t size;   /**< bytes; a multiple of sector; of the state area, exactly two sectors are used */
    uint32_t sector; /**< bytes that are erased at once */
    uint32_t write;  /**< bytes that are programmed at once, a power of two, at most 512 */
    uint8_t erased;  /**< what an erased byte reads as: filler, and what is behind a journal record that was cut */
    /** Microseconds for which nothing can be read from this flash while a sector is erased, so that inference waits:
     * the longest that the port has measured, or the part's figure. 0: it can be read meanwhile. For people only. */
    uint32_t stall_usec;
} weft_flash_t;

/**
 * What a system supplies. Functions return 0, or non-zero on failure. Offsets are from the area's start; programs are
 * whole write units in erased flash, erases are whole sectors.
 */
typedef struct {
    void *ctx;          /**< passed to every function */
    weft_flash_t slot;  /**< both slots are alike */
    weft_flash_t state; /**< the journal's area */

    /** Read. Must fail, not fault, where flash cannot be read (ECC). */
    int (*read)(void *ctx, unsigned area, uint32_t offset, void *dst, uint32_t len);
    int (*program)(void *ctx, unsigned area, uint32_t offset, const void *src, uint32_t len);
    /** Erase the sector at @p offset. */
    int (*erase)(void *ctx, unsigned area, uint32_t offset);
    /** Address where a slot is read in place, 8-aligned, or NULL; the function itself may be NULL: never. */
    const void *(*mapped)(void *ctx, unsigned area);

    int (*sha256_init)(void *ctx);
    int (*sha256_update)(void *ctx, const void *data, uint32_t len);
    int (*sha256_finish)(void *ctx, uint8_t hash[32]);
    /** 0 if @p signature (r || s, big-endian) over @p hash is @p key's (X9.62 uncompressed point, 65 bytes). */
    int (*verify_p256)(void *ctx, const uint8_t *key, const uint8_t *hash, const uint8_t *signature);

    /** Called at least once per buffer or sector of work: feed a watchdog. May be NULL. */
    void (*feed)(void *ctx);
    /** 0 if a transfer may erase so many sectors now: keep a daily budget here. May be NULL: no budget. */
    int (*may_erase)(void *ctx, uint32_t sectors);
    /** A clock in seconds, for the end of abandoned sessions. May be NULL: they end by weft_update_abort() only. */
    uint32_t (*seconds)(void *ctx);
} weft_update_hal_t;

/** weft_update_config_t.flags; all off is the safest. */
enum {
    WEFT_UPDATE_BOOT_SKIP_HASHES = 1,   /**< boot does not hash the sections of the active plan (a trial's always) */
    WEFT_UPDATE_BOOT_SKIP_SIGNATURE = 2 /**< boot does not check the signature of the active plan (a trial's always) */
};

/** What the application decides. Must stay in place while the weft_update_t is in use. */
typedef struct {
    const weft_update_hal_t *hal;
    void *buffer;           /**< one chunk: 8-aligned, used by every function but weft_update_status() */
    uint32_t buffer_len;    /**< bytes, a multiple of both write sizes, at least 64 */
    void *arena;            /**< where plans run, aligned to 64; the self-test uses it */
    size_t arena_len;       /**< bytes; a plan that needs more is refused */
    void *external;         /**< where the self-test puts inputs that are read in place; NULL: such plans are refused */
    size_t external_len;    /**< bytes */
    void *ram[2];           /**< slot.size bytes each, 8-aligned, for slots that are not mapped; otherwise NULL */
    const uint8_t *key[2];  /**< public keys (65 bytes) whose signatures count; NULL: place not used */
    const uint8_t *vendor;  /**< 16 bytes that a plan must name; NULL: any */
    const uint8_t *device;  /**< class id, the same way */
    weft_limits_t limits;   /**< work that a plan may do; arena_bytes is set from arena_len */
    weft_step_fn step;      /**< after every row step of the self-test: non-zero ends it as failed; may be NULL */
    void *step_ctx;         /**< passed to step */
    uint32_t confirm_after; /**< weft_update_healthy() calls that confirm a trial; 0: by command only */
    uint32_t idle_seconds;  /**< a session without a write for so long may be replaced; 0: never */
    uint32_t mark_bytes;    /**< distance of resume marks in the journal; 0: an eighth of the plan */
    uint32_t flags;         /**< WEFT_UPDATE_BOOT_* */
} weft_update_config_t;

/** The journal's newest record. Private to the core; weft_update_status() shows what is of use. */
typedef struct {
    uint32_t seq, floor, offset, slot_erases, state_erases;
    uint8_t state, active, tries, reason;
    uint8_t active_digest[16], digest[16];
} weft_journal_t;

/** The update core's memory. Members are private. */
typedef struct {
    const weft_update_config_t *cfg;
    weft_journal_t now;
    uint32_t place;  /* next free place of the journal's sector */
    uint8_t sector;  /* of the newest record */
    uint8_t fresh;   /* this sector was erased since the last reset: its free places are known to be untouched */
    uint8_t known;   /* there is a valid record */
    uint8_t settled; /* both copies of the newest record are valid */
    uint8_t running; /* slot that weft_update_boot() handed out */
    uint8_t copies;  /* entries of copy */
    uint32_t healthy;
    /* The session; token 0: none. */
    uint32_t token, last_token, touched;
    uint32_t total, received, flushed, fill, marked, mark;
    uint8_t digest[32];
    struct {
        uint32_t start, end, from;
    } copy[4]; /* sections that come from the active slot */
} weft_update_t;

/** How far a transfer is. */
typedef struct {
    uint32_t token;  /**< for the session's other calls; 0: no session was opened */
    uint32_t next;   /**< offset of the byte that is wanted next */
    uint32_t until;  /**< end of the range that begins at next: send these bytes, or see copying */
    uint32_t total;  /**< bytes of the plan */
    uint8_t state;   /**< WEFT_SLOT_* of the plan; meaningless with active */
    uint8_t active;  /**< 1: this plan is the active one, nothing is to be sent */
    uint8_t slot;    /**< where it goes */
    uint8_t copying; /**< 1: the device copies this range itself; ask on with empty writes */
} weft_transfer_t;

/** weft_update_begin() flags. */
enum {
    WEFT_UPDATE_COPY = 1 /**< take sections that the active plan has, by SHA-256, from its slot */
};

/** What weft_update_boot() decided. */
typedef struct {
    uint8_t slot;       /**< that the plan is in; WEFT_SLOT_NONE: nothing runs */
    uint8_t trial;      /**< 1: it must be confirmed */
    uint8_t tries;      /**< runs begun, this one counted */
    int trial_error;    /**< why a trial was reverted during this call; WEFT_OK: none was */
    int active_error;   /**< why the active plan could not be used; WEFT_OK: it could, or was not tried */
    weft_error_t where; /**< of the last plan that the verifier refused */
} weft_boot_t;

/** Figures for people. */
typedef struct {
    uint8_t active;                        /**< slot of the confirmed plan, or WEFT_SLOT_NONE */
    uint8_t running;                       /**< slot handed out by weft_update_boot(), or WEFT_SLOT_NONE */
    uint8_t state;                         /**< WEFT_SLOT_* of the other slot */
    uint8_t tries;                         /**< of a trial */
    int reason;                            /**< why a plan was reverted; WEFT_OK: by command */
    uint32_t floor;                        /**< least version that is accepted */
    uint32_t received;                     /**< bytes of the running transfer */
    uint32_t total;                        /**< of how many; 0: no transfer */
    uint32_t resume;                       /**< offset that an interrupted transfer would go on at */
    uint32_t slot_erases, state_erases;    /**< sectors erased in the device's life, as far as recorded */
    uint32_t records;                      /**< number of the newest journal record */
    uint32_t stall_usec;                   /**< of the slots' flash, weft_flash_t */
    uint8_t active_digest[16], digest[16]; /**< first halves of the plans' header digests */
} weft_update_status_t;

/**
 * Check the configuration and read the journal. Writes nothing.
 * @retval WEFT_OK also where the journal is empty or unreadable: then nothing is active
 * @retval WEFT_ERR_ARG the configuration is wrong
 */
int weft_update_init(weft_update_t *u, const weft_update_config_t *cfg);

/**
 * Decide what runs: the trial, if one is due, else the active plan, else the one before it. May be called again at
 * any time, to try a plan at once or after a revert; stop using the plan handed out before. Ends a session.
 * @param plan opened on WEFT_OK
 * @param boot what was decided, also on errors
 * @retval WEFT_OK @p plan was verified, its bytes are those that were signed, and may be run
 * @retval WEFT_ERR_NO_PLAN nothing was ever confirmed; other errors: why the active plan cannot be used
 */
int weft_update_boot(weft_update_t *u, weft_plan_t *plan, weft_boot_t *boot);

/**
 * Make the plan that stands in @p slot the active one, on a device whose journal is empty: for plans that were
 * flashed together with the firmware. The plan is checked in full.
 * @retval WEFT_ERR_STATE the journal has a record: only updates change it
 */
int weft_update_adopt(weft_update_t *u, unsigned slot);

/**
 * Begin or resume a transfer into the slot that is not active. Everything that the header tells is checked before
 * anything is erased.
 * @param head header, section table and signature record, 4-aligned, outside weft_update_config_t.buffer
 * @param len WEFT_UPDATE_HEAD_LEN(section_count)
 * @param flags WEFT_UPDATE_COPY
 * @param transfer where to go on. token 0: there is nothing to send, the plan is active, staged or in trial
 * @param err where it went wrong, or NULL
 * @retval WEFT_OK go on at transfer->next
 * @retval WEFT_ERR_BUSY another plan is being received; WEFT_ERR_STATE a trial is running; WEFT_ERR_TRIED it failed
 * before; WEFT_ERR_UNSIGNED, _KEY, _SIGNATURE, _VENDOR, _OPCODE, _FLOOR, _SLOT, _BUDGET and those of weft_open()
 *
 * The same plan begun again takes its session over: the old token is void.
 */
int weft_update_begin(weft_update_t *u, const void *head, uint32_t len, uint32_t flags, weft_transfer_t *transfer,
                      weft_error_t *err);

/**
 * Take bytes that follow. Bytes that are there already are skipped; an empty write only lets the device go on with
 * sections that it copies itself, a bounded part per call.
 * @param transfer where to go on, also on WEFT_ERR_OFFSET
 * @retval WEFT_ERR_OFFSET bytes before these are missing
 * @retval WEFT_ERR_FLASH the session has ended; begin again
 */
int weft_update_write(weft_update_t *u, uint32_t token, uint32_t offset, const void *data, uint32_t len,
                      weft_transfer_t *transfer);

/**
 * Read everything back, compare the hashes, verify the structure; then the plan is STAGED and the session ends.
 * @retval WEFT_ERR_TRUNCATED bytes are missing: go on writing. Any other error ends the session, the bytes are void
 */
int weft_update_finish(weft_update_t *u, uint32_t token, weft_error_t *err);

/** End a session; its bytes up to the last mark stay for a resumed one. */
int weft_update_abort(weft_update_t *u, uint32_t token);

/** Let the staged plan be tried at the next weft_update_boot(). */
int weft_update_test(weft_update_t *u);
/** The running trial becomes the active plan, its version the floor. */
int weft_update_confirm(weft_update_t *u);
/** Tell of an inference that went well; confirms a trial after weft_update_config_t.confirm_after of them. */
int weft_update_healthy(weft_update_t *u);
/** Give up a staged plan or a trial. If the trial is running, weft_update_boot() then hands the old plan out. */
int weft_update_revert(weft_update_t *u);
/** Erase the slot that is not active and forget its plan. */
int weft_update_erase(weft_update_t *u);

/** Read figures; touches no flash. */
void weft_update_status(const weft_update_t *u, weft_update_status_t *status);

/**
 * Run a plan on the input that its SELFTEST section generates and compare the CRC-32 of every stage and output.
 * A plan without the section passes. The arena is overwritten.
 * @retval WEFT_ERR_SELFTEST results differ, or the section is malformed; or an error of weft_run()
 */
int weft_update_selftest(const weft_update_config_t *cfg, const weft_plan_t *plan);

#ifdef __cplusplus
}
#endif

#endif
