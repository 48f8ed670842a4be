/* SPDX-License-Identifier: Apache-2.0 */
#include "host_crypto.h"

#include <mbedtls/pk.h>
#include <psa/crypto.h>

static psa_hash_operation_t hashing;

int host_crypto_init(void)
{
    return psa_crypto_init() == PSA_SUCCESS ? 0 : -1;
}

int host_crypto_load_key(const char *path, uint8_t key[HOST_KEY_BYTES])
{
    mbedtls_pk_context pk;
    size_t len = 0;
    mbedtls_pk_init(&pk);
    int r = mbedtls_pk_parse_public_keyfile(&pk, path);
    if (r == 0 && mbedtls_pk_get_type(&pk) == MBEDTLS_PK_ECKEY) {
        const mbedtls_ecp_keypair *pair = mbedtls_pk_ec(pk);
        r = pair->grp.id != MBEDTLS_ECP_DP_SECP256R1 ||
            mbedtls_ecp_point_write_binary(&pair->grp, &pair->Q, MBEDTLS_ECP_PF_UNCOMPRESSED, &len, key,
                                           HOST_KEY_BYTES) != 0;
    }
    mbedtls_pk_free(&pk);
    return r == 0 && len == HOST_KEY_BYTES ? 0 : -1;
}

int host_sha256_init(void *ctx)
{
    (void)ctx;
    (void)psa_hash_abort(&hashing);
    return psa_hash_setup(&hashing, PSA_ALG_SHA_256) == PSA_SUCCESS ? 0 : -1;
}

int host_sha256_update(void *ctx, const void *data, uint32_t len)
{
    (void)ctx;
    return psa_hash_update(&hashing, data, len) == PSA_SUCCESS ? 0 : -1;
}

int host_sha256_finish(void *ctx, uint8_t hash[32])
{
    size_t len;
    (void)ctx;
    return psa_hash_finish(&hashing, hash, 32, &len) == PSA_SUCCESS ? 0 : -1;
}

int host_verify_p256(void *ctx, const uint8_t *key, const uint8_t *hash, const uint8_t *signature)
{
    psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;
    psa_key_id_t id;
    (void)ctx;
    psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_PUBLIC_KEY(PSA_ECC_FAMILY_SECP_R1));
    psa_set_key_bits(&attributes, 256);
    psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_VERIFY_HASH);
    psa_set_key_algorithm(&attributes, PSA_ALG_ECDSA(PSA_ALG_SHA_256));
    if (psa_import_key(&attributes, key, HOST_KEY_BYTES, &id) != PSA_SUCCESS) {
        return -1;
    }
    psa_status_t status = psa_verify_hash(id, PSA_ALG_ECDSA(PSA_ALG_SHA_256), hash, 32, signature, 64);
    (void)psa_destroy_key(id);
    return status == PSA_SUCCESS ? 0 : -1;
}
