/* SPDX-License-Identifier: Apache-2.0 */
/* The update core in Zephyr: its cryptography by PSA, its lock, its place in the service. */
#include <string.h>
#include <psa/crypto.h>
#include <zephyr/kernel.h>
#include <zephyr/logging/log.h>
#include <zephyr/sys/util.h>

#include "weft_zephyr.h"

#ifdef CONFIG_WEFT_SMP
#include "weft/weft_smp.h"
#endif

LOG_MODULE_DECLARE(weft, CONFIG_WEFT_LOG_LEVEL);

#define KEY_LEN 65U
#define ID_LEN 16U
#define HASH_LEN 32U
#define SIGNATURE_LEN 64U
#define SECONDS_PER_DAY 86400U

static const uint8_t keys[][KEY_LEN] = {
#include "weft_update_keys.inc"
};

BUILD_ASSERT(ARRAY_SIZE(keys) <= 2);
BUILD_ASSERT(sizeof(CONFIG_WEFT_VENDOR_ID) == 1 || sizeof(CONFIG_WEFT_VENDOR_ID) == 2 * ID_LEN + 1,
	     "CONFIG_WEFT_VENDOR_ID is not 32 hexadecimal digits");
BUILD_ASSERT(sizeof(CONFIG_WEFT_CLASS_ID) == 1 || sizeof(CONFIG_WEFT_CLASS_ID) == 2 * ID_LEN + 1,
	     "CONFIG_WEFT_CLASS_ID is not 32 hexadecimal digits");

/* Taken before the lock: while the application holds it, transports wait. */
static K_MUTEX_DEFINE(gate);
/* Everything below is the lock's. */
static K_MUTEX_DEFINE(lock);
static weft_update_t core;
static weft_update_config_t config;
static weft_update_hal_t hal;
static psa_hash_operation_t hash;
static bool ready;

__weak void weft_service_feed(void)
{
}

/* ---------------------------------------------------------------- what the core asks for */

static int sha256_init(void *ctx)
{
	ARG_UNUSED(ctx);
	(void)psa_hash_abort(&hash);
	return psa_hash_setup(&hash, PSA_ALG_SHA_256) == PSA_SUCCESS ? 0 : -EIO;
}

static int sha256_update(void *ctx, const void *data, uint32_t len)
{
	ARG_UNUSED(ctx);
	return psa_hash_update(&hash, data, len) == PSA_SUCCESS ? 0 : -EIO;
}

static int sha256_finish(void *ctx, uint8_t digest[HASH_LEN])
{
	size_t len;

	ARG_UNUSED(ctx);
	return psa_hash_finish(&hash, digest, HASH_LEN, &len) == PSA_SUCCESS ? 0 : -EIO;
}

static int verify_p256(void *ctx, const uint8_t *key, const uint8_t *digest,
		       const uint8_t *signature)
{
	psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;
	psa_key_id_t id;
	psa_status_t status;

	ARG_UNUSED(ctx);
	psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_PUBLIC_KEY(PSA_ECC_FAMILY_SECP_R1));
	psa_set_key_bits(&attributes, 256);
	psa_set_key_algorithm(&attributes, PSA_ALG_ECDSA(PSA_ALG_SHA_256));
	psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_VERIFY_HASH);
	status = psa_import_key(&attributes, key, KEY_LEN, &id);
	if (status != PSA_SUCCESS) {
		LOG_ERR("the public key was refused by PSA (%d)", (int)status);
		return -EIO;
	}
	status = psa_verify_hash(id, PSA_ALG_ECDSA(PSA_ALG_SHA_256), digest, HASH_LEN, signature,
				 SIGNATURE_LEN);
	(void)psa_destroy_key(id);
	return status == PSA_SUCCESS ? 0 : -EBADMSG;
}

static void feed(void *ctx)
{
	ARG_UNUSED(ctx);
	weft_service_feed();
}

static uint32_t seconds(void *ctx)
{
	ARG_UNUSED(ctx);
	return (uint32_t)(k_uptime_get() / MSEC_PER_SEC);
}

#if CONFIG_WEFT_UPDATE_ERASES_PER_DAY > 0
static int may_erase(void *ctx, uint32_t sectors)
{
	static uint32_t day, spent;

	if (seconds(ctx) / SECONDS_PER_DAY != day) {
		day = seconds(ctx) / SECONDS_PER_DAY;
		spent = 0;
	}
	if (sectors > CONFIG_WEFT_UPDATE_ERASES_PER_DAY - spent) {
		return -EDQUOT;
	}
	spent += sectors;
	return 0;
}
#endif

#if CONFIG_WEFT_UPDATE_SELFTEST_MS > 0
/* Deadline of a self-test. It restarts with each weft_updates_boot(). */
static int64_t selftest_end;

static int in_time(void *ctx)
{
	ARG_UNUSED(ctx);
	return k_uptime_get() > selftest_end ? -ETIMEDOUT : 0;
}
#endif

static const uint8_t *id_of(const char *digits, uint8_t *id)
{
	return hex2bin(digits, strlen(digits), id, ID_LEN) == ID_LEN ? id : NULL;
}

static int start(void *arena, size_t arena_len, const weft_limits_t *limits)
{
	static uint64_t buffer[CONFIG_WEFT_UPDATE_BUFFER_SIZE / sizeof(uint64_t)];
	static uint8_t vendor[ID_LEN], device[ID_LEN];
	int r;

	if (psa_crypto_init() != PSA_SUCCESS) {
		LOG_ERR("PSA does not start: CONFIG_MBEDTLS_HEAP_SIZE may be too small; a board "
			"without entropy source needs what docs/zephyr.md says");
		return WEFT_ERR_STATE;
	}
	hal = *weft_slots_hal();
	hal.sha256_init = sha256_init;
	hal.sha256_update = sha256_update;
	hal.sha256_finish = sha256_finish;
	hal.verify_p256 = verify_p256;
	hal.feed = feed;
	hal.seconds = seconds;
#if CONFIG_WEFT_UPDATE_ERASES_PER_DAY > 0
	hal.may_erase = may_erase;
#endif
	config.hal = &hal;
	config.buffer = buffer;
	config.buffer_len = sizeof(buffer);
	config.arena = arena;
	config.arena_len = arena_len;
#if CONFIG_WEFT_SELFTEST_INPUT_SIZE > 0
	static uint8_t external[CONFIG_WEFT_SELFTEST_INPUT_SIZE] __aligned(WEFT_PLAN_ALIGN);

	config.external = external;
	config.external_len = sizeof(external);
#endif
	for (unsigned int slot = 0; slot < WEFT_SLOT_COUNT; slot++) {
		config.ram[slot] = weft_slots_ram(slot);
	}
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		config.key[i] = keys[i];
	}
	config.vendor = id_of(CONFIG_WEFT_VENDOR_ID, vendor);
	config.device = id_of(CONFIG_WEFT_CLASS_ID, device);
	config.limits = *limits;
#if CONFIG_WEFT_UPDATE_SELFTEST_MS > 0
	config.step = in_time;
#endif
	config.confirm_after = CONFIG_WEFT_UPDATE_CONFIRM_AFTER;
	config.idle_seconds = CONFIG_WEFT_UPDATE_IDLE_SECONDS;
	if (IS_ENABLED(CONFIG_WEFT_UPDATE_UNSIGNED)) {
		LOG_WRN("CONFIG_WEFT_UPDATE_UNSIGNED: anybody can install plans here");
	}
	r = weft_update_init(&core, &config);
	if (r != WEFT_OK) {
		LOG_ERR("weft_state needs two erase sectors, CONFIG_WEFT_UPDATE_BUFFER_SIZE a "
			"multiple of the flash's write size, and slots whole sectors");
	}
	return r;
}

/* ---------------------------------------------------------------- boot */

/* A firmware without updates left the choice of a slot in the journal and no digest: as good as an
 * empty one. */
static int forget_choice(unsigned int *chosen)
{
	static const uint8_t none[sizeof(core.now.active_digest)];

	if (core.now.active >= WEFT_SLOT_COUNT || core.now.state != WEFT_SLOT_EMPTY ||
	    memcmp(core.now.active_digest, none, sizeof(none)) != 0) {
		return WEFT_OK;
	}
	*chosen = core.now.active;
	for (uint32_t sector = 0; sector < 2; sector++) {
		if (hal.erase(hal.ctx, WEFT_AREA_STATE, sector * hal.state.sector) != 0) {
			return WEFT_ERR_FLASH;
		}
	}
	return weft_update_init(&core, &config);
}

/* The plan that was flashed together with the firmware. */
static int adopt(unsigned int first)
{
	int found = WEFT_ERR_NO_PLAN;

	for (unsigned int i = 0; i < WEFT_SLOT_COUNT; i++) {
		unsigned int slot = (first + i) % WEFT_SLOT_COUNT;
		int r = weft_slots_empty(slot);

		r = r == 1 ? WEFT_ERR_NO_PLAN : r;
		r = r == 0 ? weft_update_adopt(&core, slot) : r;
		if (r == WEFT_OK) {
			LOG_INF("slot %c: adopted", "ab"[slot]);
			return WEFT_OK;
		}
		if (r != WEFT_ERR_NO_PLAN) {
			LOG_ERR("slot %c: not adopted: %s: %s; to do: %s", "ab"[slot],
				weft_error_name(r), weft_error_message(r), weft_error_remedy(r));
			found = found == WEFT_ERR_NO_PLAN ? r : found;
		}
	}
	return found;
}

int weft_updates_boot(void *arena, size_t arena_len, const weft_limits_t *limits, weft_plan_t *plan,
		      weft_boot_t *boot)
{
	unsigned int chosen = 0;
	int r = WEFT_OK;

	memset(boot, 0, sizeof(*boot));
	boot->slot = WEFT_SLOT_NONE;
	(void)k_mutex_lock(&lock, K_FOREVER);
#if CONFIG_WEFT_UPDATE_SELFTEST_MS > 0
	selftest_end = k_uptime_get() + CONFIG_WEFT_UPDATE_SELFTEST_MS;
#endif
	if (!ready) {
		r = start(arena, arena_len, limits);
		ready = r == WEFT_OK;
	}
	r = r != WEFT_OK ? r : forget_choice(&chosen);
	if (r == WEFT_OK) {
		r = weft_update_boot(&core, plan, boot);
	}
	if (r == WEFT_ERR_NO_PLAN && ready && !core.known && IS_ENABLED(CONFIG_WEFT_UPDATE_ADOPT)) {
		r = adopt(chosen);
		r = r != WEFT_OK ? r : weft_update_boot(&core, plan, boot);
	}
	k_mutex_unlock(&lock);
	return r;
}

/* ---------------------------------------------------------------- afterwards */

void weft_updates_lock(void)
{
	(void)k_mutex_lock(&lock, K_FOREVER);
}

void weft_updates_unlock(void)
{
	k_mutex_unlock(&lock);
}

void weft_updates_healthy(void)
{
	uint8_t before;

	/* A transfer that holds the lock must not make inference wait: this run just does not
	 * count. */
	if (k_mutex_lock(&lock, K_NO_WAIT) != 0) {
		return;
	}
	before = core.now.state;
	if (ready && weft_update_healthy(&core) != WEFT_OK) {
		LOG_ERR("the trial could not be confirmed: %s", weft_error_message(WEFT_ERR_FLASH));
	} else if (before == WEFT_SLOT_TRIAL && core.now.state != WEFT_SLOT_TRIAL) {
		LOG_INF("slot %c: confirmed after %u runs", "ab"[core.now.active],
			CONFIG_WEFT_UPDATE_CONFIRM_AFTER);
	}
	k_mutex_unlock(&lock);
}

/* After a test or revert: whether something else than the open plan is to run now. */
static bool is_stale(void)
{
	uint8_t due = core.now.active;

	if (core.now.state == WEFT_SLOT_TRIAL) {
		if (!IS_ENABLED(CONFIG_WEFT_UPDATE_AT_ONCE)) {
			return false;
		}
		due = core.now.active == 0 ? 1 : 0;
	}
	return core.running != due;
}

static int command(int (*function)(weft_update_t *u), bool reopens)
{
	int r = WEFT_ERR_STATE;

	(void)k_mutex_lock(&lock, K_FOREVER);
	if (ready) {
		r = function(&core);
	}
	if (r == WEFT_OK && reopens && is_stale()) {
		weft_service_reopen();
	}
	k_mutex_unlock(&lock);
	return r;
}

void weft_service_hold_updates(void)
{
	(void)k_mutex_lock(&gate, K_FOREVER);
}

void weft_service_release_updates(void)
{
	k_mutex_unlock(&gate);
}

int weft_service_test(void)
{
	return command(weft_update_test, true);
}

int weft_service_confirm(void)
{
	return command(weft_update_confirm, false);
}

int weft_service_revert(void)
{
	return command(weft_update_revert, true);
}

int weft_service_erase(void)
{
	return command(weft_update_erase, false);
}

int weft_service_update_status(weft_update_status_t *out)
{
	int r = WEFT_ERR_STATE;

	memset(out, 0, sizeof(*out));
	(void)k_mutex_lock(&lock, K_FOREVER);
	if (ready) {
		weft_update_status(&core, out);
		r = WEFT_OK;
	}
	k_mutex_unlock(&lock);
	return r;
}

#ifdef CONFIG_WEFT_SMP

size_t weft_service_smp(const uint8_t *packet, size_t len, uint8_t *out, size_t room)
{
	static weft_smp_t smp = {.update = &core};
	bool reopens = len >= WEFT_SMP_HEADER && (packet[WEFT_SMP_HEADER - 1] == WEFT_SMP_TEST ||
						  packet[WEFT_SMP_HEADER - 1] == WEFT_SMP_REVERT);
	size_t n = 0;

	(void)k_mutex_lock(&gate, K_FOREVER);
	(void)k_mutex_lock(&lock, K_FOREVER);
	if (ready) {
		n = weft_smp_packet(&smp, packet, len, out, room);
		if (n > 0 && reopens && is_stale()) {
			weft_service_reopen();
		}
	}
	k_mutex_unlock(&lock);
	k_mutex_unlock(&gate);
	return n;
}

#endif
