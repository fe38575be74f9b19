//! What the lab takes out of Debian's kernel packages: the uncompressed kernel, and modules in the order in which
//! plain `insmod` accepts them. Used by [`super::roots`] and [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process;

/// The uncompressed kernel inside a bzImage. Emulated decompression would cost several seconds a boot.
///
/// The payload's place is in the setup header (Linux `Documentation/arch/x86/boot.rst`); its last four bytes are
/// the uncompressed size.
pub(super) fn extract_vmlinux(bzimage: &Path) -> Result<Vec<u8>> {
    let image = fs::read(bzimage).with_context(|| format!("cannot read {}", bzimage.display()))?;
    let payload = payload(&image).with_context(|| format!("{} is no bzImage", bzimage.display()))?;
    decompress(payload).with_context(|| format!("the kernel in {}", bzimage.display()))
}

/// Debian's kernels are compressed with xz up to 6.1 and with zstd from 6.12 on, modules with xz or not at all.
fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let program = match bytes {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => bail!("it is neither xz nor zstd"),
    };
    process::pipe(program, &["--decompress", "--stdout"], bytes)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?.checked_sub(4)?)
}

/// The modules of one kernel, by name.
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
    /// What is not a file because the kernel contains it.
    builtin: BTreeSet<String>,
}

/// A module as `insmod` takes it.
pub(super) struct Module {
    name: String,
    pub(super) contents: Vec<u8>,
}

impl Module {
    /// What its file is called.
    pub(super) fn file_name(&self) -> String {
        format!("{}.ko", self.name.replace('_', "-"))
    }
}

impl Modules {
    /// Finds every module under `root`, a kernel's folder in `lib/modules`.
    pub(super) fn find(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
                let entry = entry?;
                let path = entry.path();
                if entry.file_type()?.is_dir() {
                    folders.push(path);
                } else if let Some(name) = name_of(&path) {
                    files.insert(name, path);
                }
            }
        }
        let builtin = fs::read_to_string(root.join("modules.builtin"))
            .with_context(|| format!("no modules.builtin in {}", root.display()))?;
        Ok(Self { files, builtin: builtin.lines().filter_map(|line| name_of(Path::new(line))).collect() })
    }

    /// `wanted` and all they depend on, each after those it needs.
    pub(super) fn in_load_order(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in wanted {
            self.add(name, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<Module>) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || order.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else { bail!("the kernel has no module {name}") };
        let mut contents = fs::read(path)?;
        if path.extension().is_some_and(|extension| extension != "ko") {
            contents = decompress(&contents).with_context(|| path.display().to_string())?;
        }
        for needed in depends(&contents) {
            self.add(needed, order)?;
        }
        order.push(Module { name, contents });
        Ok(())
    }
}

/// The name of the module in a file, compressed or not.
fn name_of(path: &Path) -> Option<String> {
    let (name, extension) = path.file_name()?.to_str()?.split_once('.')?;
    (extension == "ko" || extension.starts_with("ko.")).then(|| name.replace('-', "_"))
}

/// The names in the `depends=` entry of a module's `.modinfo` section.
fn depends(module: &[u8]) -> Vec<&str> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = std::str::from_utf8(value).unwrap_or_default();
    value.split(',').filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_through_the_setup_header() {
        let mut image = vec![0_u8; 4096];
        image[0x1f1] = 3;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&100_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&10_u32.to_le_bytes());
        image[4 * 512 + 100..4 * 512 + 110].copy_from_slice(b"kernel\x06\0\0\0");
        assert_eq!(payload(&image), Some(&b"kernel"[..]));
        assert_eq!(payload(&image[..2000]), None);
    }

    #[test]
    fn a_module_is_named_by_its_file() {
        assert_eq!(name_of(Path::new("block/xen-blkfront.ko")), Some("xen_blkfront".to_owned()));
        assert_eq!(name_of(Path::new("block/xen-blkfront.ko.xz")), Some("xen_blkfront".to_owned()));
        assert_eq!(name_of(Path::new("modules.builtin")), None);
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(depends(b"x\0license=GPL\0depends=jbd2,mbcache\0name=ext4\0"), ["jbd2", "mbcache"]);
        assert!(depends(b"x\0depends=\0name=loop\0").is_empty());
    }
}
