//! What happens after a failed allocation: the batch is freed and the pool trimmed, then each of its images goes on
//! alone from its last completed step, once. One that fails again fails its own request only.

use imagegen_core::{
    engine::{Engine, EngineError, Stage},
    oom::{self, Blame},
    table::Shape,
};
use tracing::warn;

use super::{
    JobError,
    group::{Group, Item},
    timed,
    world::World,
};

impl<E: Engine> World<'_, E> {
    /// See the module.
    ///
    /// # Errors
    /// [`EngineError::Fatal`].
    pub(super) fn recover(&mut self, mut group: Group<E::Batch>, error: &EngineError) -> Result<(), EngineError> {
        let (stage, words) = (error.stage(), error.to_string());
        let asked_bytes = oom::asked_bytes(&words);
        // Before anything is freed: what the batch held when the allocation failed.
        let memory = self.memory.at((self.device)(), &self.engine.allocator());
        let charged_bytes = self.table.bytes(group.shape);
        let blame = match (asked_bytes, charged_bytes) {
            (Some(asked), Some(charged)) => Some(oom::blame(memory.activation_bytes(), asked, charged)),
            _ => None,
        };
        warn!(
            %stage,
            images = group.items.len(),
            asked_bytes,
            free_bytes = memory.device.is_known().then(|| memory.free_bytes()),
            charged_bytes,
            ?blame,
            again = group.is_retry,
            "The device ran out of memory."
        );
        if let Some(Blame::Table(bytes)) = blame {
            self.table.raise(group.shape, bytes);
            self.dispatcher.table_changed(&self.table);
        }
        if group.is_retry {
            let free_bytes = memory.free_bytes();
            let sentence = oom::sentence(stage, asked_bytes, free_bytes, memory.device.is_known(), &words);
            drop(group.batch.take());
            self.trim();
            self.fail(&group.items, &JobError::OutOfMemory { stage, sentence });
            return Ok(());
        }
        let parts = match group.batch.take() {
            Some(batch) => self.split(batch, group.items.len())?,
            None => Vec::new(),
        };
        let mut parts: Vec<_> = parts.into_iter().map(Some).collect();
        parts.resize_with(group.items.len(), || None);
        let left = group.items.iter().zip(parts).skip(group.decoded);
        let wanted = left.filter(|(item, _)| self.started.contains_key(&item.arrival));
        let alone: Vec<_> = wanted.map(|(item, part)| alone(&group, *item, part)).collect();
        for mut group in alone {
            if let Some(batch) = &mut group.batch {
                self.engine.suspend(batch);
            }
            self.dispatcher.metrics.retries.inc();
            self.paused.push(group);
        }
        self.trim();
        Ok(())
    }

    /// The images one by one; none when even that fails, and they must begin again.
    fn split(&mut self, batch: E::Batch, images: usize) -> Result<Vec<E::Batch>, EngineError> {
        match timed(Stage::Transformer, || self.engine.split(batch)).0 {
            Ok(parts) if parts.len() == images => Ok(parts),
            Err(error @ EngineError::Fatal { .. }) => Err(error),
            Ok(_) | Err(_) => Ok(Vec::new()),
        }
    }
}

fn alone<B>(group: &Group<B>, item: Item, part: Option<B>) -> Group<B> {
    let mut alone = Group::new(group.leader, vec![item], group.steps, Shape { batch: 1, ..group.shape });
    alone.steps_done = if part.is_some() { group.steps_done } else { 0 };
    alone.batch = part;
    alone.is_retry = true;
    alone
}
