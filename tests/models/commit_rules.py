"""The rules of the commit model, and what each mutant does wrong. Numbers as in docs/invariants.md."""

from __future__ import annotations

from exploring import Rule

SHARED = {
    "frozen_overwritten": Rule("I1", "in place only what was born after the last frozen epoch"),
    "record_before_data": Rule("I3", "data is durable before a record that does not vouch for it"),
    "acknowledged_before_durable": Rule("I4", "nothing is acknowledged before its barrier has returned"),
    "reused_at_once": Rule("I7", "what a batch frees comes back only when its record is durable"),
    "two_in_flight": Rule("I8", "one record is in flight"),
    "barriers_side_by_side": Rule("I8", "one barrier at a time: the kernel tells its error to one caller"),
    "log_overwritten": Rule("I9", "no record over what a superblock needs"),
    "error_is_forgotten": Rule("I10", "after a failed barrier nothing succeeds"),
    "nodes_without_barrier": Rule("I11", "nodes are durable before the superblock that names them"),
    "nodes_over_the_newest": Rule("I11", "nodes go where no superblock on the disk leads"),
    "superblock_in_one_slot": Rule("I11", "superblocks go to the older slot"),
    "recycled_before_durable": Rule("I12", "nothing is recycled before the new superblock is durable"),
    "older_checkpoint_recycled": Rule("I12", "a checkpoint is kept until two later superblocks are durable"),
    "open_without_first_barrier": Rule("I14", "an open begins with a barrier"),
    "open_ignores_the_error": Rule("I14", "whose error refuses the open"),
    "cache_is_believed": Rule("I14", "clean pages are dropped before anything is read"),
    "open_writes_no_superblock": Rule("I14", "an open writes a superblock before anything is placed"),
    "open_without_last_barrier": Rule("I14", "and waits until it is durable"),
    "open_writes_one_superblock": Rule("I14", "it goes to both slots"),
    "clean_open_leaves_no_mark": Rule("I14", "a file that was closed cleanly is opened the same way"),
    "epochs_not_skipped": Rule("I21", "an open skips epochs"),
    "one_epoch_skipped": Rule("I21", "as many as lost records may name"),
    "chain_ignored": Rule("I15", "records carry the sequence, or the checksum of the one before"),
    "newer_is_refused": Rule("I15", "a record that names a lost superblock is good if the chain reaches it"),
    "clean_before_durable": Rule("I16", "the mark of a clean close follows the barrier of the last record"),
    "shrink_in_two_records": Rule("M1", "the new size and the holes of the tail are in one record"),
}

TWO_BARRIERS = SHARED | {
    "synced_counts_from_return": Rule("I3", "a barrier covers what was written before it *began*"),
}

ONE_BARRIER = SHARED | {
    "salt_is_kept": Rule("I14", "each open takes a fresh salt"),
    "log_of_the_older_overwritten": Rule("I9", "nor over what only the older superblock needs"),
    "unconfirmed_overwritten": Rule("I48", "what an unconfirmed record placed is not overwritten in place"),
    "acknowledged_overwritten": Rule("I48", "not that of the acknowledged one either, while the next is in flight"),
    "fenced_overwritten": Rule("I48", "nor that of a batch that waits for its record"),
    "reused_when_acknowledged": Rule("I49", "freed slots wait until their record is confirmed"),
    "confirmed_before_durable": Rule("I49", "a record confirms the one before when it is durable"),
    "checkpoint_confirms": Rule("I49", "the superblock of a checkpoint confirms no record"),
    "last_record_is_believed": Rule("I52", "an open verifies the blocks of the last record"),
    "marks_not_covered": Rule(
        "I50", "a snapshot of what was written in place since the last barrier began takes two barriers"
    ),
    "marks_swapped_at_return": Rule("I50", "writes while a barrier runs stay marked for the next one"),
    "batch_writes_one_superblock": Rule("OB5", "a batch committed by a checkpoint goes to both superblocks"),
}

#: Checks that the others make superfluous while the medium does only what the disk of the model can do. They are kept.
SPARE = {
    "sequence_ignored": Rule("I15", "records carry a contiguous sequence: the chain does it alone"),
    "previous_ignored": Rule("I15", "records carry the checksum of the one before: sequence and fresh salts do it"),
    "short_chain_is_believed": Rule("I15", "a chain that ends before the tip is an error: it never does"),
    "newer_is_overlooked": Rule("I15", "a record that names a lost superblock off the chain is an error: none does"),
}
