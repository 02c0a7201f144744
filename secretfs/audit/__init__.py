"""`secretfs audit`: attacks on memory of this machine, and what came of each.

Whoever adds an attack writes a small function and a row of `table.TABLE`. From the bottom up:

    model     what an attack, a result and a reason are
    needle    what is looked for, masked wherever the attacker has it
    calls     system calls that attackers make
    spaces    the address space of another process
    victim    the process that is attacked: holders has what it holds, inside what is tried within it
    squeeze   a memory cgroup of the audit's own, for a victim
    subjects  starting victims, and knowing where their needles are
    outside, descriptors, borrowed, tracing, inject, traced, stacks, machine, swapping   the attacks, by topic
    table     all of them
    engine    who attacks whom, as which user, for how long; what is a control
    undo      a process that puts everything back, also when the audit is killed
    advice, report, html, command   the machine, and telling

An attack touches only processes that the audit has started.
"""
