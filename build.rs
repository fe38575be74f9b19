//! Links the image: a static executable with the layout of linker/xen.ld, for the bare target and
//! for the host's target alike. Tests and benches are linked as usual. The frontend of
//! tests/frontend, which boots the same way, is linked by this too.

use std::path::Path;

/// Prints cargo's instructions for the package being built.
pub(crate) fn main() {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let root = Path::new(&package).ancestors().find(|folder| folder.join("linker/xen.ld").exists());
    let root = root.expect("linker/xen.ld is in the workspace").display();
    // The image is the binary that is called like its package.
    let image = std::env::var("CARGO_PKG_NAME").expect("cargo sets CARGO_PKG_NAME");
    let script = format!("{root}/linker/xen.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rerun-if-changed={root}/boot/xen.S");
    if std::env::var_os("CARGO_FEATURE_IMAGE").is_none() {
        return;
    }
    let bare = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    // On the bare target rustc calls the linker itself, elsewhere through the C compiler.
    if !bare {
        for arg in ["-nostdlib", "-nostartfiles", "-static", "-no-pie"] {
            println!("cargo::rustc-link-arg-bin={image}={arg}");
        }
    }
    for arg in [
        "--build-id=none",
        "-znoexecstack",
        "-zmax-page-size=0x1000",
        "--no-dynamic-linker",
        "--gc-sections",
        &format!("-T{script}"),
    ] {
        let prefix = if bare { "" } else { "-Wl," };
        println!("cargo::rustc-link-arg-bin={image}={prefix}{arg}");
    }
}
