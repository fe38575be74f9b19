//! Links the image the way platter's own is linked.

#[path = "../../build.rs"]
mod image;

fn main() {
    image::main();
}
