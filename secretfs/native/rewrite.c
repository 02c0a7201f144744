/*
 * Requests put in another way before pyfuse3 sees them, because what it does with them would leave copies behind.
 *
 * SETXATTR with XATTR_CREATE or XATTR_REPLACE: pyfuse3 asks for the attribute first, and where the answer is an error
 * it drops name and value without handing them on to be wiped. The flags are left in a variable instead, for Python.
 *
 * LISTXATTR: pyfuse3 joins the names, in bytes objects that it does not wipe. It is asked as a GETXATTR of the attribute
 * without a name, which nobody else can ask for: getxattr(2) answers ERANGE to an empty name by itself.
 */
#include "rewrite.h"

#include <linux/fuse.h>

#define API __attribute__((visibility("default")))

API extern uint32_t secretfs_shim_xattr_flags;

uint32_t secretfs_shim_xattr_flags; /* of the SETXATTR in hand */

void secretfs_rewrite(void *request, size_t size)
{
	struct fuse_in_header *head = request;
	struct fuse_setxattr_in *in = (void *)(head + 1);

	if (head->opcode == FUSE_SETXATTR && size >= sizeof *head + sizeof in->size + sizeof in->flags) {
		secretfs_shim_xattr_flags = in->flags;
		in->flags = 0;
	} else if (head->opcode == FUSE_LISTXATTR && size == sizeof *head + sizeof(struct fuse_getxattr_in)) {
		head->opcode = FUSE_GETXATTR;
		((char *)request)[size] = 0; /* the empty name; the receive buffer is larger than any request */
		head->len++;
	}
}
