//! What guests, disks, pciback and xenstore can say to platter, as any bytes. Each target is a
//! function that takes an input, acts on it against a part of the core, and panics when something is
//! not as it must be: it asserts what the part owes, and not only that it survives.
//!
//! `targets/` has them as programs of libFuzzer, which `cargo lab fuzz` builds and runs; `corpus/` has
//! the inputs that are worth keeping, which the tests here replay.

mod frames;
mod host;
mod input;
pub mod nodes;
pub mod nvme;
mod output;
pub mod pciif;
pub mod request;
pub mod ring;
pub mod session;
pub mod table;
pub mod xenstore;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Replays what is kept of a target's inputs.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let inputs = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut count = 0;
        for input in inputs {
            let path = input.unwrap().path();
            eprintln!("{}", path.display());
            run(&fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 0, "nothing is kept");
        run(&[]);
    }

    macro_rules! replayed {
        ($($target:ident),*) => {
            $(#[test]
            fn $target() {
                replay(stringify!($target), super::$target::run);
            })*
        };
    }

    replayed!(nodes, nvme, pciif, request, ring, session, table, xenstore);
}
