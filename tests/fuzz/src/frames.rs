//! Pages that stand for machine frames. They are never freed, so runs share them.

use std::cell::RefCell;

use platter::mem::frame::Frame;

thread_local! {
    static POOL: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

/// So many pages, always the same ones, with whatever is in them.
pub(crate) fn shared(count: usize) -> Vec<Frame> {
    POOL.with_borrow_mut(|pool| {
        while pool.len() < count {
            pool.push(Frame::new());
        }
        pool[..count].to_vec()
    })
}

/// The same, zeroed.
pub(crate) fn cleared(count: usize) -> Vec<Frame> {
    let frames = shared(count);
    frames.iter().for_each(|frame| frame.fill(0));
    frames
}
