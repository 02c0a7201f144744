/* What the C API keeps, around fork(2). */
#ifndef SECRETFS_API_H
#define SECRETFS_API_H

void api_before_fork(void);
void api_after_fork(int in_child);

#endif
