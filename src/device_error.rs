//! Why a device cannot do what is asked of it: known to all backends, so that it imports none of them.

/// Why a device could not do what it was asked for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// No CUDA, or one that cannot be used.
    #[error("CUDA cannot be used: {0}")]
    Unavailable(String),
    /// A kernel does not compile.
    #[error("the kernels of {file} do not compile for this device:\n{log}")]
    Compile {
        /// The kernel's file.
        file: String,
        /// What the compiler says.
        log: String,
    },
    /// An allocation failed.
    #[error("the device has no room for {bytes} more bytes ({} MiB); {advice}", bytes >> 20)]
    OutOfMemory {
        /// The size of the allocation.
        bytes: usize,
        /// What the user can do.
        advice: String,
    },
    /// A launch or a library call failed.
    #[error(
        "{what} failed on the device: {detail}; to find out where, run again with CUDA_LAUNCH_BLOCKING=1, to go on without \
         the device use --backend cpu"
    )]
    Failed {
        /// The kernel or function.
        what: String,
        /// What the device says.
        detail: String,
    },
}
