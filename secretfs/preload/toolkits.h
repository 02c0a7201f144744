/* Cryptographic libraries that are there, or come later: where they let one say how memory is had, it is said. */
#ifndef SECRETFS_TOOLKITS_H
#define SECRETFS_TOOLKITS_H

#include <stddef.h>

/* Look at what is loaded; again after each dlopen(3). */
void toolkits_look(void);
void toolkits_in_child(void);

/* What CRYPTO_set_mem_functions takes. */
void *openssl_malloc(size_t size, const char *file, int line);
void *openssl_realloc(void *memory, size_t size, const char *file, int line);
void openssl_free(void *memory, const char *file, int line);

/* Wipes foreign memory too, of which it is told the size. */
void CRYPTO_clear_free(void *memory, size_t size, const char *file, int line);

/* The function of that name that ours stands before. */
void *next_function(const char *name);

#endif
