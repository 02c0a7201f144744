/*
 * What OpenSSL does, by several threads: crypto OPERATION THREADS COUNT. Prints the CPU time (user and system) and the
 * wall time that COUNT operations by each thread took, in nanoseconds, and the number of all operations.
 *
 * rsa2048, ecdsap256   a whole TLS 1.3 handshake with such a certificate, client and server, through memory
 * sign-rsa2048, sign-ecdsap256, aes-gcm   one signature; 1 KiB enciphered: each with a context of its own
 * malloc, openssl, secure   one piece from malloc(3), OPENSSL_malloc or OPENSSL_secure_malloc, and one freed
 * held   COUNT connections that stay open; prints the resident memory of the process instead, in bytes
 */
#define _GNU_SOURCE
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define ALIVE 64
#define STEPS 20
#define WARM 5
#define ARENA ((size_t)32 << 20)
#define CHECK(what) ((what) ? (void)0 : fail(#what))

static SSL_CTX *server, *client;
static EVP_PKEY *key;
static pthread_barrier_t ready, begun, done;
static void (*operate)(unsigned *random);
static long count;

static void fail(const char *what)
{
	fprintf(stderr, "crypto: this failed: %s\n", what);
	exit(1);
}

static unsigned next(unsigned *random)
{
	*random = *random * 1103515245u + 12345u;
	return *random >> 8;
}

/* Both sides of a connection, and what each has to say moved to the other until they agree. */
static void connect_both(SSL **from, SSL **to)
{
	BIO *inside, *outside;

	CHECK(BIO_new_bio_pair(&inside, 0, &outside, 0));
	*from = SSL_new(client);
	*to = SSL_new(server);
	CHECK(*from && *to);
	SSL_set_bio(*from, inside, inside);
	SSL_set_bio(*to, outside, outside);
	SSL_set_connect_state(*from);
	SSL_set_accept_state(*to);
	for (int step = 0; step < STEPS; step++)
		if (SSL_do_handshake(*from) + SSL_do_handshake(*to) == 2)
			return;
	ERR_print_errors_fp(stderr);
	fail("the handshake");
}

static void handshake(unsigned *random)
{
	SSL *from, *to;

	(void)random;
	connect_both(&from, &to);
	SSL_free(from);
	SSL_free(to);
}

static void sign(unsigned *random)
{
	EVP_MD_CTX *const context = EVP_MD_CTX_new();
	unsigned char signature[512];
	size_t size = sizeof signature;

	(void)random;
	CHECK(EVP_DigestSignInit(context, NULL, EVP_sha256(), NULL, key) == 1);
	CHECK(EVP_DigestSign(context, signature, &size, (const unsigned char *)"message", 7) == 1);
	EVP_MD_CTX_free(context);
}

static void encipher(unsigned *random)
{
	static const unsigned char bytes[1024], secret[16];
	EVP_CIPHER_CTX *const context = EVP_CIPHER_CTX_new();
	unsigned char out[sizeof bytes];
	int size;

	(void)random;
	CHECK(EVP_EncryptInit_ex(context, EVP_aes_128_gcm(), NULL, secret, bytes) == 1);
	CHECK(EVP_EncryptUpdate(context, out, &size, bytes, sizeof bytes) == 1);
	EVP_CIPHER_CTX_free(context);
}

/* The allocators, and what OpenSSL mostly asks for: three of four pieces have at most 128 bytes. */
static void *(*allocate)(size_t size);
static void (*release)(void *memory);
static __thread void *alive[ALIVE];

static void *openssl_allocate(size_t size)
{
	return OPENSSL_malloc(size);
}

static void openssl_release(void *memory)
{
	OPENSSL_free(memory);
}

static void *secure_allocate(size_t size)
{
	return OPENSSL_secure_malloc(size);
}

static void secure_release(void *memory)
{
	OPENSSL_secure_free(memory);
}

static void replace(unsigned *random)
{
	void **const piece = &alive[next(random) % ALIVE];

	release(*piece);
	*piece = allocate(1 + next(random) % (next(random) % 4 ? 128 : 2048));
	CHECK(*piece);
	*(char *)*piece = 1;
}

static void choose_allocator(const char *name)
{
	operate = replace;
	allocate = !strcmp(name, "malloc") ? malloc : !strcmp(name, "secure") ? secure_allocate : openssl_allocate;
	release = !strcmp(name, "malloc") ? free : !strcmp(name, "secure") ? secure_release : openssl_release;
	if (allocate == secure_allocate)
		CHECK(CRYPTO_secure_malloc_init(ARENA, 16) == 1);
}

static void make_contexts(void)
{
	X509 *const certificate = X509_new();

	CHECK(X509_set_version(certificate, 2) && X509_set_pubkey(certificate, key));
	CHECK(X509_gmtime_adj(X509_getm_notBefore(certificate), 0) && X509_gmtime_adj(X509_getm_notAfter(certificate), 3600));
	CHECK(X509_sign(certificate, key, EVP_sha256()));
	server = SSL_CTX_new(TLS_server_method());
	client = SSL_CTX_new(TLS_client_method());
	CHECK(SSL_CTX_use_certificate(server, certificate) == 1 && SSL_CTX_use_PrivateKey(server, key) == 1);
	SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_OFF);
	X509_free(certificate);
}

static void choose(const char *name)
{
	if (!strcmp(name, "malloc") || !strcmp(name, "openssl") || !strcmp(name, "secure")) {
		choose_allocator(name);
	} else if (!strcmp(name, "aes-gcm")) {
		operate = encipher;
	} else {
		key = strstr(name, "ecdsap256") ? EVP_EC_gen("P-256") : EVP_RSA_gen(2048);
		CHECK(key);
		make_contexts();
		operate = strncmp(name, "sign-", 5) ? handshake : sign;
	}
}

static void *work(void *number)
{
	unsigned random = 1 + 7919 * (unsigned)(size_t)number;

	for (long i = 0; i < count / 10 + WARM; i++)
		operate(&random);
	pthread_barrier_wait(&ready);
	pthread_barrier_wait(&begun);
	for (long i = 0; i < count; i++)
		operate(&random);
	pthread_barrier_wait(&done);
	return NULL;
}

static long long cpu_time(void)
{
	struct rusage used;

	getrusage(RUSAGE_SELF, &used);
	return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000LL +
	       (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000LL;
}

static long long wall_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void time_threads(unsigned number)
{
	pthread_t *const threads = calloc(number, sizeof *threads);
	long long cpu, wall;

	for (pthread_barrier_t *const *barrier = (pthread_barrier_t *const[]){&ready, &begun, &done, NULL}; *barrier; barrier++)
		pthread_barrier_init(*barrier, NULL, number + 1);
	for (unsigned i = 0; i < number; i++)
		CHECK(!pthread_create(&threads[i], NULL, work, (void *)(size_t)i));
	pthread_barrier_wait(&ready);
	cpu = cpu_time();
	wall = wall_time();
	pthread_barrier_wait(&begun);
	pthread_barrier_wait(&done);
	printf("%lld %lld %ld\n", cpu_time() - cpu, wall_time() - wall, (long)number * count);
	for (unsigned i = 0; i < number; i++)
		pthread_join(threads[i], NULL);
}

static void hold(void)
{
	FILE *file;
	SSL *from, *to;
	long pages;

	choose("ecdsap256");
	for (long i = 0; i < count; i++)
		connect_both(&from, &to);
	file = fopen("/proc/self/statm", "r");
	CHECK(file && fscanf(file, "%*s %ld", &pages) == 1);
	printf("%ld\n", pages * sysconf(_SC_PAGESIZE));
}

int main(int words, char **word)
{
	if (words != 4)
		fail("three arguments: crypto OPERATION THREADS COUNT");
	count = atol(word[3]);
	if (!strcmp(word[1], "held")) {
		hold();
	} else {
		choose(word[1]);
		time_threads((unsigned)atoi(word[2]));
	}
	return 0;
}
