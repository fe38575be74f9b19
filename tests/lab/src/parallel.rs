//! The same on several at once.

use std::thread;

use anyhow::{Result, anyhow};

/// Does something with each of the items, all at the same time, and gives what came of it in their order.
///
/// # Errors
/// That of the first item that has one; all have ended by then.
pub(crate) fn each_at_once<I: Sync, T: Send>(
    items: &[I],
    each: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || each(item))).collect();
        let ended =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_an_error_is_the_first_ones() {
        assert_eq!(each_at_once(&[1, 2, 3], |item| Ok(item * 2)).unwrap(), [2, 4, 6]);
        let error = each_at_once(&[1, 2, 3], |item| if *item > 1 { Err(anyhow!("{item}")) } else { Ok(()) });
        assert_eq!(error.unwrap_err().to_string(), "2");
    }
}
