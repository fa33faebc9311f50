//! Samples of a matrix in which every pair of values of any two factors occurs.

/// Rows of value indices, one index for each factor. With every pair covered, a fault that needs two
/// values at once is met; the full product is left to `--full`.
pub(crate) fn pairs(sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut open: Vec<[(usize, usize); 2]> = Vec::new();
    for (first, &first_size) in sizes.iter().enumerate() {
        for (second, &second_size) in sizes.iter().enumerate().skip(first + 1) {
            for a in 0..first_size {
                for b in 0..second_size {
                    open.push([(first, a), (second, b)]);
                }
            }
        }
    }
    if sizes.len() < 2 {
        return full(sizes);
    }
    let candidates = full(sizes);
    let mut rows = Vec::new();
    while !open.is_empty() {
        let covered = |row: &[usize]| {
            open.iter()
                .filter(|pair| pair.iter().all(|&(factor, value)| row[factor] == value))
                .count()
        };
        // The first of the best, so that the sample is the same every time.
        let mut best = None;
        for row in &candidates {
            let count = covered(row);
            if best.is_none_or(|(most, _)| count > most) {
                best = Some((count, row));
            }
        }
        let Some((_, row)) = best else { break };
        open.retain(|pair| pair.iter().any(|&(factor, value)| row[factor] != value));
        rows.push(row.clone());
    }
    rows
}

/// Every combination.
pub(crate) fn full(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![Vec::new()], |rows, &size| {
        rows.iter()
            .flat_map(|row| {
                (0..size).map(move |value| row.iter().copied().chain([value]).collect::<Vec<_>>())
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_occurs_and_the_sample_is_small() {
        let sizes = [5, 3, 3];
        let rows = pairs(&sizes);
        for first in 0..sizes.len() {
            for second in first + 1..sizes.len() {
                for a in 0..sizes[first] {
                    for b in 0..sizes[second] {
                        assert!(rows.iter().any(|row| row[first] == a && row[second] == b));
                    }
                }
            }
        }
        assert!(rows.len() < 20, "{} rows", rows.len());
        assert_eq!(rows, pairs(&sizes));
    }

    #[test]
    fn the_full_product_has_every_row_once() {
        let mut rows = full(&[5, 3, 3]);
        rows.sort();
        rows.dedup();
        assert_eq!(rows.len(), 45);
    }

    #[test]
    fn one_factor_and_none_are_taken_whole() {
        assert_eq!(pairs(&[3]), [[0], [1], [2]]);
        assert_eq!(pairs(&[2, 2]).len(), 4);
        assert!(pairs(&[0, 2]).is_empty());
    }
}
