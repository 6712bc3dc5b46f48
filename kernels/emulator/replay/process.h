// Work in processes of its own, which a sanitizer may end.
#pragma once

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

namespace kvfold::replay {

// Starts a process that does `work` and exits with what it gives; −1 if none is to be had.
template <class Work> pid_t start(Work work) {
    fflush(stdout);
    pid_t child = fork();
    if (child != 0) return child;
    int code = work();
    fflush(stdout);
    _exit(code);
}

// The exit code that waitpid told of, or −1 if a signal ended the process.
inline int exit_code(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }

} // namespace kvfold::replay
