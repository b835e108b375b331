//! What to compile for a device, and where compiled code is kept for the next process.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::kernel_files::KernelFile;
use super::libraries::TOOLKIT;
use super::nvrtc::{Compiler, Target};
use crate::device_error::DeviceError;
use crate::files::write_atomically;

pub(super) fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The driver must be for CUDA 12 or newer, and not for an older major version than the libraries, whose machine code it
/// would refuse to load.
pub(super) fn check_versions(driver: i32, (major, minor): (i32, i32)) -> Result<(), DeviceError> {
    let needed = major.max(12);
    if driver / 1000 >= needed {
        return Ok(());
    }
    Err(DeviceError::Unavailable(format!(
        "the driver is for CUDA {}, and libnvrtc is of CUDA {major}.{minor}: install a driver for CUDA {needed} or newer{}, \
         or use --backend cpu",
        cuda_version(driver),
        if driver / 1000 >= 12 { ", put older libraries on LD_LIBRARY_PATH" } else { "" }
    )))
}

/// Minor versions of integrated devices (Jetson), whose machine code and a card's do not run on each other.
const INTEGRATED: [i32; 4] = [72, 87, 101, 110];

/// What to compile for: machine code of the device's own version, or of an earlier minor one, on which it runs too; otherwise
/// PTX of the newest version before it, which the driver compiles for the device.
pub(super) fn target(
    (major, minor): (i32, i32),
    known: &[i32],
    compiler: (i32, i32),
) -> Result<Target, DeviceError> {
    if major < 8 {
        return Err(DeviceError::Unavailable(format!(
            "the device has compute capability {major}.{minor}, and 8.0 or newer is required; use --backend cpu"
        )));
    }
    let device = 10 * major + minor;
    let machine_code = |&&known: &&i32| {
        known == device
            || (known / 10 == major
                && known < device
                && ![known, device].iter().any(|version| INTEGRATED.contains(version)))
    };
    let newest = |suits: &dyn Fn(&&i32) -> bool| known.iter().filter(suits).max().copied();
    newest(&machine_code)
        .map(Target::Cubin)
        .or_else(|| newest(&|&&known| known < device && !INTEGRATED.contains(&known)).map(Target::Ptx))
        .ok_or_else(|| {
            DeviceError::Unavailable(format!(
                "libnvrtc of CUDA {}.{} does not compile for compute capability {major}.{minor}; {TOOLKIT}, of an older \
                 version, or use --backend cpu",
                compiler.0, compiler.1
            ))
        })
}

/// Bytes of a digest in front of kept machine code: the driver is told no length, and would read beyond the end of a damaged
/// file.
const DIGEST: usize = 32;

/// Machine code that [`keep`] wrote; `None` if there is none or it is damaged.
pub(super) fn read_kept(path: &Path) -> Option<Vec<u8>> {
    let mut content = fs::read(path).ok()?;
    let (digest, cubin) = content.split_at_checked(DIGEST)?;
    let whole = Sha256::digest(cubin).as_slice() == digest;
    whole.then(|| content.split_off(DIGEST))
}

/// Keeps machine code for the next process. If the cache cannot be written, the next start takes seconds longer.
pub(super) fn keep(path: &Path, cubin: &[u8]) {
    if path.parent().is_some_and(|parent| fs::create_dir_all(parent).is_ok()) {
        let _ = write_atomically(path, &[Sha256::digest(cubin).as_slice(), cubin].concat());
    }
}

/// The file of a kernel file's code; `None` where there is no directory for it.
pub(super) fn place(file: &KernelFile, compiler: Compiler, target: Target) -> Option<PathBuf> {
    let key = Sha256::digest(compiler.key(file, target));
    let key = base16ct::lower::encode_string(&key[..16]);
    Some(cache_directory()?.join(format!("{}-{key}.{}", file.name, target.extension())))
}

fn cache_directory() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.map(|cache| cache.join("duogpt/kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_machine_code_is_compiled_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/kernel.cubin");
        let cubin: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        assert_eq!(read_kept(&path), None);
        keep(&path, &cubin);
        assert_eq!(read_kept(&path), Some(cubin.clone()));
        let whole = fs::read(&path).unwrap();
        for length in [0, 10, DIGEST, DIGEST + 1, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read_kept(&path), None, "{length} of {} bytes", whole.len());
        }
        let mut changed = whole.clone();
        changed[500] ^= 1;
        fs::write(&path, changed).unwrap();
        assert_eq!(read_kept(&path), None);
        keep(&path, &cubin);
        assert_eq!(read_kept(&path), Some(cubin));
    }

    #[test]
    fn versions_that_do_not_fit_are_refused_with_advice() {
        let refused = |driver, compiler| check_versions(driver, compiler).unwrap_err().to_string();
        assert_eq!(check_versions(12040, (12, 9)), Ok(()));
        assert_eq!(check_versions(13000, (12, 4)), Ok(()));
        assert_eq!(check_versions(13000, (13, 0)), Ok(()));
        let old = refused(11080, (12, 4));
        assert!(old.contains("for CUDA 11.8") && old.contains("install a driver for CUDA 12"), "{old}");
        let mixed = refused(12080, (13, 0));
        assert!(mixed.contains("for CUDA 13 or newer, put older libraries"), "{mixed}");
        assert!(mixed.contains("--backend cpu"), "{mixed}");
    }

    #[test]
    fn the_target_is_the_newest_that_runs_on_the_device() {
        let known = [75, 80, 86, 87, 89, 90, 100, 103, 120];
        let of = |capability| target(capability, &known, (13, 0));
        assert_eq!(of((8, 0)), Ok(Target::Cubin(80)));
        assert_eq!(of((8, 7)), Ok(Target::Cubin(87)));
        // Not machine code of 8.7, which is an integrated device.
        assert_eq!(of((8, 8)), Ok(Target::Cubin(86)));
        assert_eq!(of((9, 0)), Ok(Target::Cubin(90)));
        assert_eq!(of((10, 2)), Ok(Target::Cubin(100)));
        assert_eq!(of((12, 1)), Ok(Target::Cubin(120)));
        // Integrated devices run no other machine code, and new ones none that is known: the driver compiles for them.
        assert_eq!(of((10, 1)), Ok(Target::Ptx(100)));
        assert_eq!(of((11, 0)), Ok(Target::Ptx(103)));
        assert_eq!(of((13, 0)), Ok(Target::Ptx(120)));
        let old = of((7, 5)).unwrap_err().to_string();
        assert!(old.contains("compute capability 7.5") && old.contains("8.0"), "{old}");
        let none = target((8, 0), &[90, 100], (14, 0)).unwrap_err().to_string();
        assert!(none.contains("CUDA 14.0 does not compile for compute capability 8.0"), "{none}");
    }
}
