"""File systems that lack something: a preloaded library lets the calls fail; others are mounted, small or read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fleet.processes import ROOT, Done

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#define REAL(type, name) ((type)dlsym(RTLD_NEXT, name))
static int want(const char *name) {
  char key[32];
  snprintf(key, 32, "%s=", name);
  const char *all = getenv("LACKING"), *found = all ? strstr(all, key) : NULL;
  return found ? atoi(found + strlen(key)) : 0;
}
static int fails(const char *name) { int e = want(name); if (e) errno = e; return e; }
static long left = 0;
void kill_before_call(long number) { left = number; }  /* of those that change a file system, from now on */
static void step(void) { if (left && !--left) raise(SIGKILL); }
static int regular(int fd) { struct stat s; return !fstat(fd, &s) && S_ISREG(s.st_mode); }
int flock(int fd, int op) { return fails("flock") ? -1 : REAL(int (*)(int, int), "flock")(fd, op); }
int fchmod(int fd, mode_t m) {
  step();
  return fails("chmod") ? -1 : REAL(int (*)(int, mode_t), "fchmod")(fd, m);
}
int fsync(int fd) {
  struct stat s;
  step();
  if (fails(!fstat(fd, &s) && S_ISDIR(s.st_mode) ? "dirsync" : "filesync")) return -1;
  return REAL(int (*)(int), "fsync")(fd);
}
int renameat2(int a, const char *b, int c, const char *d, unsigned f) {
  step();
  if (fails("exchange")) return -1;
  return REAL(int (*)(int, const char *, int, const char *, unsigned), "renameat2")(a, b, c, d, f);
}
int rename(const char *a, const char *b) {
  step();
  return REAL(int (*)(const char *, const char *), "rename")(a, b);
}
int renameat(int a, const char *b, int c, const char *d) {
  step();
  return REAL(int (*)(int, const char *, int, const char *), "renameat")(a, b, c, d);
}
int mkdir(const char *p, mode_t m) { step(); return REAL(int (*)(const char *, mode_t), "mkdir")(p, m); }
int mkdirat(int fd, const char *p, mode_t m) {
  step();
  return REAL(int (*)(int, const char *, mode_t), "mkdirat")(fd, p, m);
}
int unlink(const char *p) { step(); return REAL(int (*)(const char *), "unlink")(p); }
int unlinkat(int fd, const char *p, int f) {
  step();
  return REAL(int (*)(int, const char *, int), "unlinkat")(fd, p, f);
}
int rmdir(const char *p) { step(); return REAL(int (*)(const char *), "rmdir")(p); }
int openat64(int fd, const char *p, int flags, ...) {
  va_list rest; va_start(rest, flags); mode_t m = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);
  if (flags & O_CREAT) step();
  return REAL(int (*)(int, const char *, int, ...), "openat64")(fd, p, flags, m);
}
int open64(const char *p, int flags, ...) {
  va_list rest; va_start(rest, flags); mode_t m = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);
  if (flags & O_CREAT) step();
  return REAL(int (*)(const char *, int, ...), "open64")(p, flags, m);
}
ssize_t write(int fd, const void *b, size_t n) {
  if (left && regular(fd)) step();
  return REAL(ssize_t (*)(int, const void *, size_t), "write")(fd, b, n);
}
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) {
  step();
  return REAL(ssize_t (*)(int, const void *, size_t, off64_t), "pwrite64")(fd, b, n, o);
}
int ftruncate64(int fd, off64_t n) { step(); return REAL(int (*)(int, off64_t), "ftruncate64")(fd, n); }
int fstat64(int fd, struct stat64 *s) {
  int done = REAL(int (*)(int, struct stat64 *), "fstat64")(fd, s);
  if (!done) s->st_mode |= want("mode");
  return done;
}
"""


def compile_library(folder: Path) -> Path:
    """The library; skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: these calls can only be made to fail by a library that is compiled here")
    source, library = folder / "lacking.c", folder / "lacking.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, source, "-ldl"], check=True)
    return library


def chainctl_lacking(library: Path, lacks: str, *arguments: object, **environment: str) -> Done:
    """Run the command line where calls fail: `flock=38 chmod=1` names them, with the error number of each."""
    return run(arguments, {"LD_PRELOAD": str(library), "LACKING": lacks, **environment})


def chainctl_mounted(mount: str, *arguments: object) -> Done:
    """Run the command line after shell commands that mount something, which nobody else sees."""
    for namespace in (["unshare", "-m"], ["unshare", "-rm"]):
        if not subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
            return run(arguments, {}, [*namespace, "sh", "-ec", f'{mount}; exec "$@"', "sh"])
    pytest.skip("nothing can be mounted here, not even for a process of its own")


def run(arguments: tuple[object, ...], environment: Mapping[str, str], before: list[str] | None = None) -> Done:
    command = [*(before or []), sys.executable, "-m", "chainctl", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
