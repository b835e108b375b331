//! Turns a missing OpenBLAS into one clear sentence instead of a linker error.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo:rerun-if-env-changed=LIBRARY_PATH");
    commit_of_the_source();
    if !openblas_is_installed() {
        eprintln!(
            "error: duogpt links to the system's OpenBLAS, and none was found.\n\
             Install it and build again:\n  \
             Debian, Ubuntu: apt-get install libopenblas-dev pkg-config\n  \
             Fedora:         dnf install openblas-devel pkgconf\n  \
             Arch:           pacman -S openblas pkgconf\n  \
             macOS:          brew install openblas pkg-config"
        );
        std::process::exit(1);
    }
}

fn openblas_is_installed() -> bool {
    let pkg_config = Command::new("pkg-config").args(["--exists", "openblas"]).status();
    if pkg_config.is_ok_and(|status| status.success()) {
        return true;
    }
    // Without pkg-config or a .pc file the linker may still know the library.
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let found = Command::new(compiler).arg("-print-file-name=libopenblas.so").output();
    // The compiler echoes the bare name when it does not find the file.
    found.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_absolute())
}

/// Reports name the commit they were made with, where the source is a git checkout.
fn commit_of_the_source() {
    let described = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let commit = match described {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_string(),
        _ => "unknown".into(),
    };
    println!("cargo:rustc-env=DUOGPT_COMMIT={commit}");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/index");
}
