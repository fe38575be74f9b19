//! Makes Debian's fio small enough for an emulated guest.
//!
//! It is linked with clients for Ceph, Gluster, NBD, RDMA and persistent memory, which with what they need weigh
//! 80 MB. A guest only uses libaio. So those packages stay out, and one library with the functions that fio imports
//! from them, each of which traps, takes the place of all of them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// The packages that are left out.
pub(super) const CLIENTS: [&str; 8] =
    ["libgfapi0", "libibverbs1", "libnbd0", "libpmem1", "libpmemblk1", "librados2", "librbd1", "librdmacm1"];
/// The libraries in them that fio names.
const LIBRARIES: [&str; 8] = [
    "libgfapi.so.0",
    "libibverbs.so.1",
    "libnbd.so.0",
    "libpmem.so.1",
    "libpmemblk.so.1",
    "librados.so.2",
    "librbd.so.1",
    "librdmacm.so.1",
];
/// How the names of their functions start.
const PREFIXES: [&str; 8] = ["glfs_", "ibv_", "nbd_", "pmem_", "pmemblk_", "rados_", "rbd_", "rdma_"];

/// Puts the replacement library into the unpacked packages, under each name fio looks for.
///
/// # Errors
/// There is no `nm` or `cc` on the host: Rust itself needs both.
pub(super) fn replace_clients(tree: &Path) -> Result<()> {
    let fio = tree.join("usr/bin/fio");
    let symbols = process::output(Command::new("nm").args(["--dynamic", "--undefined-only"]).arg(fio))?;
    let imports = client_imports(&symbols);
    let folder = tree.join("usr/lib/x86_64-linux-gnu");
    let (source, script) = (folder.join("clients.s"), folder.join("clients.map"));
    fs::write(&source, assembly(&imports))?;
    fs::write(&script, version_script(&imports))?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-nostdlib", "-o"]).arg(folder.join("clients.so")).arg(&source);
    cc.arg(format!("-Wl,--version-script={}", script.display()));
    process::output(&mut cc).context("building the stand-in for fio's network clients")?;
    for library in LIBRARIES {
        // Not a link: the dynamic linker lists one file once, whatever its names.
        fs::copy(folder.join("clients.so"), folder.join(library))?;
    }
    Ok(())
}

/// The clients' functions by their version; unversioned ones come under the empty name.
fn client_imports(symbols: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut imports: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for symbol in symbols.lines().filter_map(|line| line.split_whitespace().last()) {
        let (name, version) = symbol.split_once('@').unwrap_or((symbol, ""));
        if PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            imports.entry(version).or_default().push(name);
        }
    }
    imports
}

fn assembly(imports: &BTreeMap<&str, Vec<&str>>) -> String {
    imports.values().flatten().fold(String::new(), |mut text, name| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, ".globl {name}\n.type {name}, @function\n{name}: ud2");
        text
    })
}

fn version_script(imports: &BTreeMap<&str, Vec<&str>>) -> String {
    imports.iter().filter(|(version, _)| !version.is_empty()).fold(
        String::new(),
        |mut text, (version, names)| {
            let _ = writeln!(text, "{version} {{ global: {}; }};", names.join("; "));
            text
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_grouped_by_version() {
        let symbols = "                 U deflate\n   U rbd_open\n   U nbd_close@LIBNBD_1.0\n   U nbd_poll@LIBNBD_1.0\n";
        let imports = client_imports(symbols);
        assert_eq!(imports[""], ["rbd_open"]);
        assert_eq!(version_script(&imports), "LIBNBD_1.0 { global: nbd_close; nbd_poll; };\n");
        assert_eq!(assembly(&imports).matches("ud2").count(), 3);
    }
}
