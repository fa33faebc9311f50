//! Sorting, with one sort for everything: each further type sorted costs kilobytes of code.

use alloc::vec::Vec;

/// `items` ordered by a key of at most 96 bits; equal ones keep their order.
pub(crate) fn ordered<T>(items: Vec<T>, key: impl Fn(&T) -> u128) -> Vec<T> {
    let mut keys: Vec<u128> = items
        .iter()
        .zip(0_u32..)
        .map(|(item, index)| key(item) << 32 | u128::from(index))
        .collect();
    types::sort(&mut keys);
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    keys.iter()
        .filter_map(|key| {
            let [a, b, c, d, ..] = key.to_le_bytes();
            let index = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
            items.get_mut(index)?.take()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::ordered;

    #[test]
    fn equal_keys_keep_their_order() {
        let items = vec![(2, 'a'), (1, 'b'), (2, 'c'), (1, 'd')];
        let sorted = ordered(items, |&(key, _)| key);
        assert_eq!(sorted, [(1, 'b'), (1, 'd'), (2, 'a'), (2, 'c')]);
    }
}
