/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The selftest library of Linux 7.2 calls calloc_assert() but no header of
 * that release defines it: an array of zeros, or the end of the test. */
#pragma once
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
static inline void *calloc_assert(size_t count, size_t size)
{
	void *memory = calloc(count, size);
	if (!memory) {
		fprintf(stderr, "out of memory\n");
		abort();
	}
	return memory;
}
