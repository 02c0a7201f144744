//! Threads that hold secrets: through libc's syscall(), and through an instruction of their own that no library sees.
//!
//! threads N M: N threads, M secrets each; prints "N*M ok". Standard library only.

use std::arch::asm;
use std::os::raw::{c_int, c_long, c_void};
use std::io::{Error, ErrorKind, Read};
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd};
use std::{env, fs::File, ptr, slice, thread};

const MEMFD_SECRET: c_long = 447;
const O_CLOEXEC: c_long = 0x80000;
const SIZE: usize = 8192;

extern "C" {
    fn syscall(number: c_long, flags: c_long) -> c_long;
    fn ftruncate(fd: c_int, length: i64) -> c_int;
    fn mmap(at: *mut c_void, length: usize, rights: c_int, kind: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn munmap(at: *mut c_void, length: usize) -> c_int;
}

fn by_library() -> Result<OwnedFd, Error> {
    let fd = unsafe { syscall(MEMFD_SECRET, O_CLOEXEC) };
    if fd < 0 { Err(Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) }) }
}

fn by_instruction() -> Result<OwnedFd, Error> {
    let mut fd = MEMFD_SECRET;
    unsafe { asm!("syscall", inlateout("rax") fd, in("rdi") O_CLOEXEC, lateout("rcx") _, lateout("r11") _) };
    if fd < 0 { Err(Error::from_raw_os_error(-fd as c_int)) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) }) }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Other, what)
}

/// One secret: sized, mapped, filled, read in vain through its descriptor, compared, given back.
fn once(fd: OwnedFd, mark: u8) -> Result<(), Error> {
    let number = fd.as_raw_fd();
    if unsafe { ftruncate(number, SIZE as i64) } != 0 {
        return Err(Error::last_os_error());
    }
    let map = unsafe { mmap(ptr::null_mut(), SIZE, 3, 1, number, 0) };
    if map as isize == -1 {
        return Err(Error::last_os_error());
    }
    let area = unsafe { slice::from_raw_parts_mut(map as *mut u8, SIZE) };
    let fresh = area.iter().all(|byte| *byte == 0);
    area.fill(mark);
    let refused = File::from(fd).read(&mut [0; 16]).map_err(|error| error.raw_os_error());
    thread::yield_now();
    let own = area.iter().all(|byte| *byte == mark);
    unsafe { munmap(map, SIZE) };
    match (fresh, refused, own) {
        (true, Err(Some(22)), true) => Ok(()),
        (false, ..) => Err(wrong("a fresh secret is not zero")),
        (_, _, false) => Err(wrong("another's byte")),
        (_, other, _) => Err(wrong(&format!("read: {other:?}"))),
    }
}

fn main() {
    let words: Vec<usize> = env::args().skip(1).map(|word| word.parse().unwrap()).collect();
    let work = |mark: usize| {
        let tries = words[1];
        move || {
            (0..tries)
                .filter(|round| {
                    let made = if round % 2 == 0 { by_library() } else { by_instruction() };
                    made.and_then(|fd| once(fd, mark as u8)).map_err(|error| println!("{error}")).is_ok()
                })
                .count()
        }
    };
    let threads: Vec<_> = (1..=words[0]).map(|mark| thread::spawn(work(mark))).collect();
    let good: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    println!("{good} ok");
}
