/* Keeps a password in secret memory, opens it only while it is needed, and says what protects it. */
#include <secretfs.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
	struct secretfs_protection protection;
	char *const password = secretfs_map(64);
	char *const token = secretfs_alloc(32);

	if (!password || !token) {
		perror("secret memory");
		return 1;
	}
	strcpy(password, "correct horse battery staple");
	secretfs_hide(password); /* now no code of ours can read it by accident */

	secretfs_reveal(password, 0);
	memcpy(token, password, 7);
	secretfs_hide(password);

	secretfs_protection(&protection);
	printf("ok: backend %s, off the direct map: %s, %zu bytes locked\n", protection.backend,
	       protection.off_direct_map ? "yes" : "no", protection.locked);
	secretfs_free(token); /* wiped */
	secretfs_free(password);
	return 0;
}
