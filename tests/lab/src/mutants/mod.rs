//! Mutants: mistakes that could be made in the image, one edit each, kept in `tests/mutants.toml`. They show that the
//! tests find what they are for. Here they are read and applied to copies of the sources; [`run`] is
//! `cargo lab mutants`, which has the host's tests find each.

pub(crate) mod run;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::paths;

/// One mistake.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Mutant {
    /// What it is, in a few words.
    pub(crate) name: String,
    /// The file that is changed, below the workspace.
    pub(crate) file: PathBuf,
    /// What would happen to users.
    pub(crate) why: String,
    /// Text of the file, which is there once.
    find: String,
    /// What stands there instead.
    replace: String,
    /// The host's test that finds it first, with its modules.
    pub(crate) caught_by: String,
}

impl Mutant {
    /// A file's text with the mistake in it.
    fn apply(&self, text: &str) -> Result<String> {
        let count = text.matches(&self.find).count();
        ensure!(count == 1, "mutant {}: its text is {count} times in {}", self.name, self.file.display());
        Ok(text.replace(&self.find, &self.replace))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    mutant: Vec<Mutant>,
}

/// All mutants, in the file's order.
///
/// # Errors
/// `tests/mutants.toml` cannot be read, or says of two that they have the same name.
pub(crate) fn all() -> Result<Vec<Mutant>> {
    let path = paths::workspace().join("tests/mutants.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let Catalogue { mutant: mutants } = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let mut names = HashSet::new();
    if let Some(twice) = mutants.iter().find(|mutant| !names.insert(&mutant.name)) {
        bail!("two mutants are called {}", twice.name);
    }
    Ok(mutants)
}

/// Where all copies are built: what does not depend on the mistake is built once.
pub(crate) fn target() -> PathBuf {
    paths::mutants().join("target")
}

/// Makes the copy of this name one of the workspace's sources with these mutants in them; returns its folder.
///
/// # Errors
/// There is no such mutant, its text is not where it was, or the copy cannot be written.
pub(crate) fn copy_with(copy: &str, names: &[&str]) -> Result<PathBuf> {
    let all = all()?;
    let find = |name: &&str| all.iter().find(|mutant| mutant.name == *name);
    let chosen = names.iter().map(|name| find(name).with_context(|| format!("no mutant is called {name}")));
    let folder = paths::mutants().join(copy);
    copy_into(&folder, &chosen.collect::<Result<Vec<_>>>()?)?;
    Ok(folder)
}

/// Makes `folder` a copy of the sources with these mutants. What is there already and does not change keeps its
/// time of modification, so that little is built again.
fn copy_into(folder: &Path, mutants: &[&Mutant]) -> Result<()> {
    let from = paths::workspace();
    let (sources, old) = (files(&from)?, if folder.exists() { files(folder)? } else { Vec::new() });
    if let Some(lost) = mutants.iter().find(|mutant| !sources.contains(&mutant.file)) {
        bail!("mutant {}: there is no {}", lost.name, lost.file.display());
    }
    for file in &sources {
        let mut bytes = fs::read(from.join(file))?;
        for mutant in mutants.iter().filter(|mutant| mutant.file == *file) {
            bytes = mutant.apply(&String::from_utf8(bytes)?)?.into_bytes();
        }
        let to = folder.join(file);
        if fs::read(&to).ok().as_ref() != Some(&bytes) {
            fs::create_dir_all(to.parent().unwrap_or(folder))?;
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    for file in old.iter().filter(|file| !sources.contains(file)) {
        fs::remove_file(folder.join(file))?;
    }
    Ok(())
}

/// The files below a folder but what git and cargo keep there.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.strip_prefix(root)?;
            if path.is_symlink() || [".git", "target"].iter().any(|other| name == Path::new(other)) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(name.to_owned());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_changes_one_place_and_says_why() {
        for mutant in all().unwrap() {
            let path = paths::workspace().join(&mutant.file);
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", mutant.name));
            assert_ne!(mutant.apply(&text).unwrap(), text, "{}", mutant.name);
            assert!(!mutant.why.is_empty() && !mutant.caught_by.is_empty(), "{}", mutant.name);
        }
    }

    #[test]
    fn a_copy_differs_where_its_mutants_do_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let mutant = all().unwrap().swap_remove(0);
        let differences = |mutants: &[&Mutant]| {
            copy_into(folder.path(), mutants).unwrap();
            let sources = files(&paths::workspace()).unwrap();
            assert_eq!(sources.len(), files(folder.path()).unwrap().len());
            let read = |root: &Path, file: &PathBuf| fs::read(root.join(file)).unwrap();
            let differs = |file: &PathBuf| read(&paths::workspace(), file) != read(folder.path(), file);
            sources.into_iter().filter(differs).collect::<Vec<_>>()
        };
        assert!(differences(&[]).is_empty());
        fs::write(folder.path().join("src/of_yesterday.rs"), "").unwrap();
        assert_eq!(differences(&[&mutant]), [mutant.file.as_path()]);
        assert!(differences(&[]).is_empty());
    }

    #[test]
    fn text_that_is_not_there_once_is_not_changed() {
        let mutant = Mutant {
            name: "m".to_owned(),
            file: PathBuf::new(),
            why: String::new(),
            find: "a".to_owned(),
            replace: "b".to_owned(),
            caught_by: String::new(),
        };
        assert_eq!(mutant.apply("cad").unwrap(), "cbd");
        assert!(mutant.apply("caad").is_err() && mutant.apply("cd").is_err());
    }

    #[test]
    fn unknown_mutants_are_not_applied() {
        assert!(
            copy_with("none", &["none-of-this-name"]).unwrap_err().to_string().contains("none-of-this-name")
        );
    }
}
