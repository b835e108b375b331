//! The texts of `kernels/`, embedded in the program.

/// A file of `kernels/`.
#[derive(Debug)]
pub struct KernelFile {
    /// Its name.
    pub name: &'static str,
    /// Its text, without [`COMMON`].
    pub source: &'static str,
}

/// The text before every kernel file: `kernels/common.cuh`.
pub const COMMON: &str = include_str!("../../kernels/common.cuh");

macro_rules! kernel_files {
    ($($constant:ident = $name:literal),* $(,)?) => {
        $(pub(crate) static $constant: KernelFile =
            KernelFile { name: $name, source: include_str!(concat!("../../kernels/", $name)) };)*
        /// All kernel files.
        pub static KERNEL_FILES: &[&KernelFile] = &[$(&$constant),*];
    };
}
kernel_files! {
    ACTIVATION = "activation.cu",
    STATISTICS = "statistics.cu",
    FACTOR = "factor.cu",
    SCORE = "score.cu",
    MASK = "mask.cu",
    PANEL = "panel.cu",
    SELECT = "select.cu",
    SPMSPV = "spmspv.cu",
}

impl KernelFile {
    /// The `__global__` functions of a source, in its order.
    pub fn kernels_of(source: &str) -> Vec<&str> {
        fn name(rest: &str) -> &str {
            let rest = rest.trim_start();
            let rest = match rest.strip_prefix("__launch_bounds__(") {
                Some(bounds) => bounds.split_once(')').map_or("", |(_, rest)| rest).trim_start(),
                None => rest,
            };
            rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("")
        }
        source.split("__global__ void").skip(1).map(name).collect()
    }
}
