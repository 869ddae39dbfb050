/*
 * DPDK's tables for `tapyard bench fib`: rte_fib (DIR24_8), rte_lpm, and rte_fib6 (TRIE).
 *
 * A command is one line on standard input, some with binary data behind it, in host byte order unless said
 * otherwise; the answer is one line, "ok …" or "error …", perhaps after lines "at …" of progress.
 *
 *   keys ipv4 N      N addresses of 4 bytes follow                     ok
 *   keys ipv6 N      N addresses of 16 bytes in network order follow   ok
 *   load ipv4 N      N struct route4 follow; into rte_fib and rte_lpm  ok avx512|scalar: the best lookups there are
 *   load ipv6 N      N struct route6 follow; into rte_fib6             ok avx512|scalar
 *   run NAME I J     look up the keys in [I, J)                        ok SUM NANOSECONDS
 *
 * Next hops are 1 to 2^24 - 1.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_fib.h>
#include <rte_fib6.h>
#include <rte_lpm.h>

enum { BURST = 32, ADDRESS6 = 16, GROUP = 256 /* entries of a tbl8 */ };

struct route4 { uint32_t ip, depth, hop; };
struct route6 { uint8_t ip[ADDRESS6]; uint32_t depth, hop; };

static uint32_t *keys4;
static uint8_t (*keys6)[ADDRESS6];

static struct rte_fib *fib;
static struct rte_fib6 *fib6;
static struct rte_lpm *lpm;

static double seconds(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* take reads n things of a size from standard input. */
static void *take(size_t n, size_t size)
{
	void *all = malloc(n * size);
	if (all == NULL || fread(all, size, n, stdin) != n) {
		printf("error %zu things of %zu bytes: no memory, or standard input ended\n", n, size);
		exit(1);
	}
	return all;
}

static bool fail(const char *what, int code)
{
	printf("error %s: %s\n", what, strerror(code < 0 ? -code : code));
	return false;
}

/* The number of tbl8 groups that routes take at most. */
static uint32_t groups4(const struct route4 *r, size_t n)
{
	uint32_t groups = 1;
	for (size_t i = 0; i < n; i++)
		groups += r[i].depth > 24;
	return groups;
}

static uint32_t groups6(const struct route6 *r, size_t n)
{
	uint32_t groups = 1;
	for (size_t i = 0; i < n; i++)
		groups += r[i].depth > 24 ? (r[i].depth - 24 + 7) / 8 : 0;
	return groups;
}

static bool load_fib(const struct route4 *r, size_t n)
{
	struct rte_fib_conf conf = {
		.type = RTE_FIB_DIR24_8,
		.max_routes = n + 1,
		.dir24_8 = { .nh_sz = RTE_FIB_DIR24_8_4B, .num_tbl8 = groups4(r, n) },
	};
	rte_fib_free(fib);
	fib = rte_fib_create("fib", SOCKET_ID_ANY, &conf);
	if (fib == NULL)
		return fail("rte_fib_create", rte_errno);
	for (size_t i = 0; i < n; i++) {
		int code = rte_fib_add(fib, r[i].ip, r[i].depth, r[i].hop);
		if (code != 0)
			return fail("rte_fib_add", code);
	}
	return true;
}

static bool load_fib6(const struct route6 *r, size_t n)
{
	struct rte_fib6_conf conf = {
		.type = RTE_FIB6_TRIE,
		.max_routes = n + 1,
		.trie = { .nh_sz = RTE_FIB6_TRIE_4B, .num_tbl8 = groups6(r, n) },
	};
	rte_fib6_free(fib6);
	fib6 = rte_fib6_create("fib6", SOCKET_ID_ANY, &conf);
	if (fib6 == NULL)
		return fail("rte_fib6_create", rte_errno);
	for (size_t i = 0; i < n; i++) {
		int code = rte_fib6_add(fib6, r[i].ip, r[i].depth, r[i].hop);
		if (code != 0)
			return fail("rte_fib6_add", code);
	}
	return true;
}

/*
 * rte_lpm_add searches its rules one by one, so that the Internet's table takes a minute. Rules are loaded with
 * their numbers for next hops therefore; the tables as they are then, labels, are kept, and the same prefixes
 * with other next hops are that with each number replaced by the next hop. The tables are the same as if
 * they had been loaded with it: rte_lpm never looks at a next hop.
 */
static struct {
	struct route4 *routes;
	size_t n;
	uint32_t groups;
	struct rte_lpm_tbl_entry *tbl24, *tbl8;
} labels;

static bool same_prefixes(const struct route4 *r, size_t n)
{
	if (n != labels.n)
		return false;
	for (size_t i = 0; i < n; i++)
		if (r[i].ip != labels.routes[i].ip || r[i].depth != labels.routes[i].depth)
			return false;
	return true;
}

/* A default route is two of length 1, which is the shortest that rte_lpm takes; routes are sorted, so that such ones
 * come later and stand. */
static bool add_rules(const struct route4 *r, size_t n)
{
	double said = seconds(CLOCK_MONOTONIC);
	for (size_t i = 0; i < n; i++) {
		int code;
		if (r[i].depth > 0)
			code = rte_lpm_add(lpm, r[i].ip, r[i].depth, i + 1);
		else if ((code = rte_lpm_add(lpm, 0, 1, i + 1)) == 0)
			code = rte_lpm_add(lpm, 1u << 31, 1, i + 1);
		if (code != 0)
			return fail("rte_lpm_add", code);
		if (seconds(CLOCK_MONOTONIC) - said > 10) {
			printf("at rte_lpm_add: %zu of %zu routes, of which each takes longer than the one before\n", i, n);
			said = seconds(CLOCK_MONOTONIC);
		}
	}
	return true;
}

static void *copy(const void *from, size_t size)
{
	void *to = malloc(size);
	if (to != NULL)
		memcpy(to, from, size);
	return to;
}

static bool load_labels(const struct route4 *r, size_t n)
{
	uint32_t groups = groups4(r, n);
	struct rte_lpm_config conf = { .max_rules = n + 2, .number_tbl8s = groups };
	rte_lpm_free(lpm);
	free(labels.routes);
	free(labels.tbl24);
	free(labels.tbl8);
	memset(&labels, 0, sizeof labels);
	lpm = rte_lpm_create("lpm", SOCKET_ID_ANY, &conf);
	if (lpm == NULL)
		return fail("rte_lpm_create", rte_errno);
	if (!add_rules(r, n))
		return false;
	labels.routes = copy(r, n * sizeof *r);
	labels.tbl24 = copy(lpm->tbl24, sizeof lpm->tbl24);
	labels.tbl8 = copy(lpm->tbl8, (size_t)groups * GROUP * sizeof *lpm->tbl8);
	if (labels.routes == NULL || labels.tbl24 == NULL || labels.tbl8 == NULL)
		return fail("copy rte_lpm's tables", ENOMEM);
	labels.n = n;
	labels.groups = groups;
	return true;
}

static bool load_lpm(const struct route4 *r, size_t n)
{
	if (!same_prefixes(r, n) && !load_labels(r, n))
		return false;
	for (size_t i = 0; i < RTE_LPM_TBL24_NUM_ENTRIES; i++)
		if (labels.tbl24[i].valid && !labels.tbl24[i].valid_group)
			lpm->tbl24[i].next_hop = r[labels.tbl24[i].next_hop - 1].hop;
	for (size_t i = 0; i < (size_t)labels.groups * GROUP; i++)
		if (labels.tbl8[i].valid)
			lpm->tbl8[i].next_hop = r[labels.tbl8[i].next_hop - 1].hop;
	return true;
}

/* Lookups, alike for every table. Where no route matches, they answer 0. */

static uint32_t lookup_lpm(uint32_t key)
{
	uint32_t hop;
	return rte_lpm_lookup(lpm, key, &hop) == 0 ? hop : 0;
}

static uint64_t lookup_fib(uint32_t key)
{
	uint64_t hop;
	rte_fib_lookup_bulk(fib, &key, &hop, 1);
	return hop;
}

static uint64_t lookup_fib6(uint8_t key[ADDRESS6])
{
	uint64_t hop;
	rte_fib6_lookup_bulk(fib6, (uint8_t (*)[ADDRESS6])key, &hop, 1);
	return hop;
}

static uint64_t burst_lpm(uint32_t *keys)
{
	uint32_t hops[BURST];
	uint64_t sum = 0;
	rte_lpm_lookup_bulk(lpm, keys, hops, BURST);
	for (size_t i = 0; i < BURST; i++)
		sum += hops[i] & RTE_LPM_LOOKUP_SUCCESS ? hops[i] & (RTE_LPM_LOOKUP_SUCCESS - 1) : 0;
	return sum;
}

static uint64_t burst_fib(uint32_t *keys)
{
	uint64_t hops[BURST], sum = 0;
	rte_fib_lookup_bulk(fib, keys, hops, BURST);
	for (size_t i = 0; i < BURST; i++)
		sum += hops[i];
	return sum;
}

static uint64_t burst_fib6(uint8_t (*keys)[ADDRESS6])
{
	uint64_t hops[BURST], sum = 0;
	rte_fib6_lookup_bulk(fib6, keys, hops, BURST);
	for (size_t i = 0; i < BURST; i++)
		sum += hops[i];
	return sum;
}

/* 0, which neither the compiler nor the processor knows. */
static volatile uint64_t no_bits;

/* LOOPS makes the loops for a table: each key alone, in bursts, and each found by means of the last answer, so that
 * no lookup begins before the last one has ended. */
#define LOOPS(table, keys)                                                        \
	static uint64_t single_##table(size_t from, size_t to)                    \
	{                                                                         \
		uint64_t sum = 0;                                                 \
		for (size_t i = from; i < to; i++)                                \
			sum += lookup_##table(keys[i]);                           \
		return sum;                                                       \
	}                                                                         \
	static uint64_t batch_##table(size_t from, size_t to)                     \
	{                                                                         \
		uint64_t sum = 0;                                                 \
		size_t i = from;                                                  \
		for (; i + BURST <= to; i += BURST)                               \
			sum += burst_##table(keys + i);                           \
		for (; i < to; i++)                                               \
			sum += lookup_##table(keys[i]);                           \
		return sum;                                                       \
	}                                                                         \
	static uint64_t chase_##table(size_t from, size_t to)                     \
	{                                                                         \
		uint64_t sum = 0, hop = 0, none = no_bits;                        \
		for (size_t i = from; i < to; i++) {                              \
			hop = lookup_##table(keys[i + (hop & none)]);             \
			sum += hop;                                               \
		}                                                                 \
		return sum;                                                       \
	}

LOOPS(lpm, keys4)
LOOPS(fib, keys4)
LOOPS(fib6, keys6)

static bool avx512(bool on)
{
	return rte_fib_select_lookup(fib,
		on ? RTE_FIB_LOOKUP_DIR24_8_VECTOR_AVX512 : RTE_FIB_LOOKUP_DIR24_8_SCALAR_MACRO) == 0;
}

static bool avx512_6(bool on)
{
	return rte_fib6_select_lookup(fib6,
		on ? RTE_FIB6_LOOKUP_TRIE_VECTOR_AVX512 : RTE_FIB6_LOOKUP_TRIE_SCALAR) == 0;
}

static const struct {
	const char *name;
	uint64_t (*loop)(size_t from, size_t to);
	bool (*select)(bool avx512); /* NULL if there is one way only */
	bool avx512;
} runs[] = {
	{ "single.rte_lpm", single_lpm, NULL, false },
	{ "batch32.rte_lpm", batch_lpm, NULL, false },
	{ "chase.rte_lpm", chase_lpm, NULL, false },
	{ "single.rte_fib", single_fib, avx512, false },
	{ "batch32.rte_fib", batch_fib, avx512, false },
	{ "chase.rte_fib", chase_fib, avx512, false },
	{ "batch32.rte_fib-avx512", batch_fib, avx512, true },
	{ "single.rte_fib6", single_fib6, avx512_6, false },
	{ "batch32.rte_fib6", batch_fib6, avx512_6, false },
	{ "chase.rte_fib6", chase_fib6, avx512_6, false },
	{ "batch32.rte_fib6-avx512", batch_fib6, avx512_6, true },
};

static void run(const char *name, size_t from, size_t to)
{
	for (size_t i = 0; i < RTE_DIM(runs); i++) {
		if (strcmp(name, runs[i].name) != 0)
			continue;
		if (runs[i].select != NULL && !runs[i].select(runs[i].avx512)) {
			printf("error %s can't be had\n", name);
			return;
		}
		double began = seconds(CLOCK_THREAD_CPUTIME_ID);
		uint64_t sum = runs[i].loop(from, to);
		double took = seconds(CLOCK_THREAD_CPUTIME_ID) - began;
		printf("ok %" PRIu64 " %.0f\n", sum, took * 1e9);
		return;
	}
	printf("error there is no run %s\n", name);
}

static void load4(size_t n)
{
	struct route4 *r = take(n, sizeof *r);
	if (load_fib(r, n) && load_lpm(r, n))
		puts(avx512(true) ? "ok avx512" : "ok scalar");
	free(r);
}

static void load6(size_t n)
{
	struct route6 *r = take(n, sizeof *r);
	if (load_fib6(r, n))
		puts(avx512_6(true) ? "ok avx512" : "ok scalar");
	free(r);
}

int main(int argc, char **argv)
{
	char line[128], name[64];
	size_t n, from, to;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (rte_eal_init(argc, argv) < 0) {
		printf("error rte_eal_init: %s\n", rte_strerror(rte_errno));
		return 1;
	}
	puts("ok");
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (sscanf(line, "keys ipv4 %zu", &n) == 1) {
			free(keys4);
			keys4 = take(n, sizeof *keys4);
			puts("ok");
		} else if (sscanf(line, "keys ipv6 %zu", &n) == 1) {
			free(keys6);
			keys6 = take(n, sizeof *keys6);
			puts("ok");
		} else if (sscanf(line, "load ipv4 %zu", &n) == 1) {
			load4(n);
		} else if (sscanf(line, "load ipv6 %zu", &n) == 1) {
			load6(n);
		} else if (sscanf(line, "run %63s %zu %zu", name, &from, &to) == 3) {
			run(name, from, to);
		} else {
			printf("error there is no command %s", line);
		}
	}
	return 0;
}
