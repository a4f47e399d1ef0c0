//! Which GPU CUDA gives to this process, told apart as CUDA does: by `CUDA_VISIBLE_DEVICES` and MIG.

/// What of the environment decides. Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Visible {
    /// `CUDA_VISIBLE_DEVICES`: indices, or beginnings of UUIDs of cards and MIG instances.
    pub(crate) devices: Option<String>,
    /// `CUDA_DEVICE_ORDER`
    pub(crate) order: Option<String>,
}

impl Visible {
    /// The environment of this process.
    pub(crate) fn of_process() -> Self {
        let read = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self { devices: read("CUDA_VISIBLE_DEVICES"), order: read("CUDA_DEVICE_ORDER") }
    }
}

/// A card as NVML lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) uuid: String,
    pub(crate) name: String,
    /// UUIDs of its MIG instances.
    pub(crate) instances: Vec<String>,
}

/// Why no GPU is the one of this process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChooseError {
    #[error("the driver lists no GPU; in a pod, ask for nvidia.com/gpu")]
    NoCards,
    #[error("CUDA_VISIBLE_DEVICES={visible:?} shows {count} GPUs, and cuda:{index} is not among them")]
    NotVisible { visible: String, index: u32, count: usize },
    #[error("the driver lists {count} GPUs; expected an index below that, found cuda:{index}")]
    NoSuchIndex { index: u32, count: usize },
    #[error("CUDA_VISIBLE_DEVICES: {entry:?} is the beginning of {matches} UUIDs; expected one")]
    Prefix { entry: String, matches: usize },
    #[error(
        "CUDA orders different cards by speed and NVML by PCI address, so an index names two cards; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the card by UUID in CUDA_VISIBLE_DEVICES"
    )]
    Ambiguous,
}

/// UUID of the card or MIG instance that is `cuda:index` in this process.
///
/// # Errors
/// When there is none, or when the same index can mean two cards.
pub(crate) fn choose(cards: &[Card], visible: &Visible, index: u32) -> Result<String, ChooseError> {
    if cards.is_empty() {
        return Err(ChooseError::NoCards);
    }
    let Some(list) = &visible.devices else {
        return by_index(cards, visible, index as usize, index);
    };
    let entries = shown(cards, list);
    let not_visible = || ChooseError::NotVisible { visible: list.clone(), index, count: entries.len() };
    let entry = *entries.get(index as usize).ok_or_else(not_visible)?;
    match entry.parse::<usize>() {
        Ok(number) => by_index(cards, visible, number, index),
        Err(_) => by_uuid(cards, entry),
    }
}

/// The entries up to the first that names nothing, as CUDA reads the list.
fn shown<'a>(cards: &[Card], list: &'a str) -> Vec<&'a str> {
    let names_something = |entry: &&str| match entry.parse::<usize>() {
        Ok(number) => number < cards.len(),
        Err(_) => matches(cards, entry).next().is_some(),
    };
    list.split(',').map(str::trim).take_while(names_something).collect()
}

fn by_index(cards: &[Card], visible: &Visible, number: usize, index: u32) -> Result<String, ChooseError> {
    let by_address = visible.order.as_deref() == Some("PCI_BUS_ID");
    if !by_address && cards.iter().any(|card| card.name != cards[0].name) {
        return Err(ChooseError::Ambiguous);
    }
    let card = cards.get(number).ok_or(ChooseError::NoSuchIndex { index, count: cards.len() })?;
    // On a card that is cut up, CUDA uses the first instance.
    Ok(card.instances.first().unwrap_or(&card.uuid).clone())
}

fn by_uuid(cards: &[Card], entry: &str) -> Result<String, ChooseError> {
    let found: Vec<_> = matches(cards, entry).collect();
    match found.as_slice() {
        [(uuid, card)] if *uuid == card.uuid => Ok(card.instances.first().unwrap_or(&card.uuid).clone()),
        [(uuid, _)] => Ok((*uuid).to_owned()),
        several => Err(ChooseError::Prefix { entry: entry.to_owned(), matches: several.len() }),
    }
}

fn matches<'a>(cards: &'a [Card], entry: &str) -> impl Iterator<Item = (&'a str, &'a Card)> {
    let is_uuid = ["GPU-", "MIG-"].iter().any(|start| entry.starts_with(start));
    let all = cards
        .iter()
        .flat_map(|card| [&card.uuid].into_iter().chain(&card.instances).map(move |uuid| (uuid.as_str(), card)));
    all.filter(move |(uuid, _)| is_uuid && uuid.starts_with(entry))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn card(uuid: &str, name: &str, instances: &[&str]) -> Card {
        Card {
            uuid: uuid.into(),
            name: name.into(),
            instances: instances.iter().map(|&uuid| uuid.to_owned()).collect(),
        }
    }

    /// Two equal cards and one that is cut up.
    fn cards() -> Vec<Card> {
        vec![
            card("GPU-aa11", "H100", &[]),
            card("GPU-bb22", "H100", &[]),
            card("GPU-bb33", "H100", &["MIG-c1", "MIG-c2"]),
        ]
    }

    #[rstest]
    #[case::without_the_variable_by_index(None, 1, "GPU-bb22")]
    #[case::an_index(Some("1"), 0, "GPU-bb22")]
    #[case::a_list_of_indices(Some("1,0"), 1, "GPU-aa11")]
    #[case::a_uuid(Some("GPU-bb22"), 0, "GPU-bb22")]
    #[case::the_beginning_of_a_uuid(Some("GPU-a"), 0, "GPU-aa11")]
    #[case::uuids_with_spaces(Some("GPU-bb22, GPU-aa11"), 1, "GPU-aa11")]
    #[case::an_instance(Some("MIG-c2"), 0, "MIG-c2")]
    #[case::a_card_that_is_cut_up_means_its_first_instance(Some("GPU-bb33"), 0, "MIG-c1")]
    #[case::an_index_of_a_card_that_is_cut_up(Some("2"), 0, "MIG-c1")]
    fn the_card_of_the_process(#[case] devices: Option<&str>, #[case] index: u32, #[case] expected: &str) {
        let visible = Visible { devices: devices.map(Into::into), order: None };
        assert_eq!(choose(&cards(), &visible, index), Ok(expected.to_owned()));
    }

    #[rstest]
    #[case::an_empty_list_hides_all(Some(""), 0, "shows 0 GPUs")]
    #[case::minus_one_hides_what_follows(Some("0,-1,1"), 1, "shows 1 GPUs")]
    #[case::a_uuid_of_another_machine(Some("GPU-ff"), 0, "shows 0 GPUs")]
    #[case::an_index_beyond_the_list(Some("1"), 1, "cuda:1 is not among them")]
    #[case::an_index_beyond_the_cards(None, 3, "lists 3 GPUs")]
    #[case::a_beginning_of_two(Some("GPU-bb"), 0, "the beginning of 2 UUIDs")]
    fn no_card(#[case] devices: Option<&str>, #[case] index: u32, #[case] expected: &str) {
        let visible = Visible { devices: devices.map(Into::into), order: None };
        let error = choose(&cards(), &visible, index).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn an_index_among_different_cards_needs_an_order() {
        let cards = [card("GPU-a", "H100", &[]), card("GPU-b", "L4", &[])];
        let by_speed = Visible::default();
        assert_eq!(choose(&cards, &by_speed, 0), Err(ChooseError::Ambiguous));
        let by_address = Visible { order: Some("PCI_BUS_ID".into()), ..by_speed };
        assert_eq!(choose(&cards, &by_address, 1), Ok("GPU-b".into()));
        let by_uuid = Visible { devices: Some("GPU-b".into()), order: None };
        assert_eq!(choose(&cards, &by_uuid, 0), Ok("GPU-b".into()));
    }

    #[test]
    fn no_cards_at_all() {
        assert_eq!(choose(&[], &Visible::default(), 0), Err(ChooseError::NoCards));
    }
}
