/* What is read into secret memory. */
#ifndef SECRETFS_FILES_H
#define SECRETFS_FILES_H

/* A forked child has no window yet. */
void files_in_child(void);

#endif
