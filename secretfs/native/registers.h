/* Vector registers: where a copy of what was copied last is left. */
#ifndef SECRETFS_REGISTERS_H
#define SECRETFS_REGISTERS_H

/* Forget what was copied last. */
__attribute__((visibility("default"))) void secretfs_shim_forget_registers(void);

#endif
