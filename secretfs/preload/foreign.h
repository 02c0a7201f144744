/* Memory of the allocator that the program uses. */
#ifndef SECRETFS_FOREIGN_H
#define SECRETFS_FOREIGN_H

/* Find it, before dlsym(3) can have an error to free: it would free it twice. */
void foreign_start(void);

#endif
