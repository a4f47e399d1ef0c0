//! Attention over sequences of different lengths that lie one after the other.

use tch::Tensor;

/// Lengths of sequences that lie one after the other in the first dimension of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lengths(Vec<i64>);

impl Lengths {
    pub(crate) const fn new(lengths: Vec<i64>) -> Self {
        Self(lengths)
    }

    pub(crate) fn as_slice(&self) -> &[i64] {
        &self.0
    }

    /// The length of all of them, when it is the same.
    pub(crate) fn uniform(&self) -> Option<i64> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().all(|length| length == first).then_some(*first)
    }

    /// First row and length of each.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (i64, i64)> {
        self.0.iter().scan(0, |start, &length| {
            let range = (*start, length);
            *start += length;
            Some(range)
        })
    }
}

/// Attention within each sequence; never with a mask, so that the fused kernels can be used.
///
/// # Shapes
/// `query`, `key` and `value` `[tokens, heads, head_dim]`, to `[tokens, heads * head_dim]`.
pub(crate) fn attend(query: &Tensor, key: &Tensor, value: &Tensor, lengths: &Lengths, causal: bool) -> Tensor {
    let (tokens, heads, head_dim) = query.size3().expect("query has three dimensions");
    let batch_of = |x: &Tensor, length: i64| x.view([-1, length, heads, head_dim]).transpose(1, 2); // [B, heads, length, head_dim]
    let attend = |query: &Tensor, key: &Tensor, value: &Tensor, length: i64| {
        let (query, key, value) = (batch_of(query, length), batch_of(key, length), batch_of(value, length));
        let output =
            Tensor::scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, causal, None, false);
        output.transpose(1, 2).reshape([-1, heads * head_dim])
    };
    match lengths.uniform() {
        Some(length) => attend(query, key, value, length),
        None => {
            let output = Tensor::empty([tokens, heads * head_dim], (query.kind(), query.device()));
            for (start, length) in lengths.ranges() {
                let part = |x: &Tensor| x.narrow(0, start, length);
                let attended = attend(&part(query), &part(key), &part(value), length);
                output.narrow(0, start, length).copy_(&attended);
            }
            output
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_each_other() {
        let lengths = Lengths::new(vec![3, 1, 4]);
        assert_eq!(lengths.ranges().collect::<Vec<_>>(), [(0, 3), (3, 1), (4, 4)]);
        assert_eq!(lengths.uniform(), None);
        assert_eq!(Lengths::new(vec![2, 2]).uniform(), Some(2));
    }
}
