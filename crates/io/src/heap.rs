//! How the process's heap behaves.

/// Allocations from here on are given back to the system when they are freed. Requests of guests are
/// smaller: they come and go too often for that.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 2 << 20;

/// Lets large allocations go back to the system when they are freed, whatever was allocated before: by
/// itself the C library's heap keeps more and more of them, and opening a disk needs a lot for a moment.
/// For a process that lives long; elsewhere than on glibc nothing is done.
pub fn give_back_large_allocations() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (what, value) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)] {
        #[expect(unsafe_code, reason = "a setting of the C library")]
        // SAFETY: takes two numbers, and may be called at any time.
        let taken = unsafe { libc::mallopt(what, value) };
        debug_assert_eq!(taken, 1, "mallopt takes it");
    }
}
