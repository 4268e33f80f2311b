/* Fence, commit and reclamation (docs/invariants.md: I1 to I3, I5 to I8, I13), in every order in which they can run.
 *
 * Three writers, a flush, two snapshots, their deletes and a reader share one mutex: what is in `atomic` or `d_step` is
 * done under it. The I/O of data is not. A crash is not played but looked at: whenever a slot is given out, neither the
 * state that the disk would be opened with nor the record in flight may need it.
 *
 * Each -D switch of spin_models.py drops one rule.
 */
#define BLOCKS 2
#define SLOTS 4           /* numbered from 1; 0: a hole */
#define WRITERS 3
#define SNAPSHOTS 2
#ifndef WRITES
#define WRITES 1          /* of each writer, to blocks that the others write, too */
#endif
#define COMMITTERS 3      /* flush, snapshot, delete */
#define FLUSH 0
#define SNAPSHOT 1
#define DELETE 2
#define PROCESSES 7       /* that come to an end */

/* A slot's way back */
#define FREE 0
#define USED 1
#define FREED 2           /* in the open batch */
#define RECORDED 3        /* in the record in flight */
#define WAITING 4         /* for the end of reads; the next one after one era */

/* the head */
byte slot_of[BLOCKS], birth[BLOCKS];     /* block 0 is there from the beginning */
byte epoch = 1, frozen;
bool fencing;
byte parent, before, cursor;            /* the free rule: epoch of the holder, of the one above; how far it is gone */
byte flights[BLOCKS];
byte flight_epoch[WRITERS], flight_slot[WRITERS];    /* 0: none */

/* snapshots: the blocks from `kept_from` on are theirs, and on the disk those from `durable_from` on */
byte snapshot_slot[4], snapshot_birth[4];
byte snapshot_epoch[SNAPSHOTS], kept_from[SNAPSHOTS], durable_from[SNAPSHOTS];
bool acknowledged[SNAPSHOTS], deleted[SNAPSHOTS];
#define AT(k, b) ((k) * BLOCKS + (b))

/* slots */
byte state[SLOTS + 1];
bool placed[SLOTS + 1];                 /* new data that no barrier covers */

/* commit: what the disk has, and what is under way to it */
bool committing;
byte durable_slot[BLOCKS];
byte record_slot[COMMITTERS * BLOCKS];

/* reads */
bool era;
byte readers[2];
byte read_slot;

byte ended;

/* -- slots ------------------------------------------------------------------------------------------------------- */
inline check_given_out(s) {
    for (j : 0 .. BLOCKS - 1) {
        assert(slot_of[j] != s && durable_slot[j] != s);
        for (k : 0 .. COMMITTERS - 1) { assert(record_slot[k * BLOCKS + j] != s) }
        for (k : 0 .. SNAPSHOTS - 1) {
            assert(j < kept_from[k] || snapshot_slot[AT(k, j)] != s);
            assert(j < durable_from[k] || snapshot_slot[AT(k, j)] != s)
        }
    }
    for (k : 0 .. WRITERS - 1) { assert(flight_slot[k] != s) }
    assert(read_slot != s)
}

inline give_back(s) {
    assert(state[s] == USED);           /* freed once */
    for (j : 0 .. BLOCKS - 1) {
        assert(slot_of[j] != s);
        for (k : 0 .. SNAPSHOTS - 1) { assert(j < kept_from[k] || snapshot_slot[AT(k, j)] != s) }
    }
#ifdef FREED_AT_ONCE
    state[s] = WAITING
#else
    state[s] = FREED
#endif
}

/* In the end: what is in use is in use by somebody. */
inline check_owners() {
    for (s : 1 .. SLOTS) {
        found = false;
        for (j : 0 .. BLOCKS - 1) {
            found = found || slot_of[j] == s;
            for (k : 0 .. SNAPSHOTS - 1) { found = found || (j >= kept_from[k] && snapshot_slot[AT(k, j)] == s) }
        }
        assert(found == (state[s] == USED))
    }
    s = 0; j = 0; k = 0; found = false
}

/* What is read: a block of the live volume, or of a snapshot that is not deleted. */
inline select_place() {
    if :: b = 0 :: b = 1 fi;
    if
    :: read_slot = slot_of[b]
    :: acknowledged[0] && !deleted[0] -> read_slot = snapshot_slot[AT(0, b)]
    :: acknowledged[1] && !deleted[1] -> read_slot = snapshot_slot[AT(1, b)]
    fi
}

/* -- commit ------------------------------------------------------------------------------------------------------- */
inline lock() {
#ifdef NO_COMMIT_LOCK
    skip
#else
    atomic { !committing -> committing = true }
#endif
}

inline unlock() { committing = false }

inline barrier() {
    for (j : 0 .. SLOTS) { placed[j] = false }
    j = 0
}

/* What was published since the last record; within the mutex. */
inline take(who) {
    for (j : 1 .. SLOTS) { if :: state[j] == FREED -> state[j] = RECORDED :: else fi }
    for (j : 0 .. BLOCKS - 1) { record_slot[who * BLOCKS + j] = slot_of[j] }
    j = 0
}

/* I3: the data barrier, then the record. */
inline write_record(who) {
    d_step {
#ifndef NO_DATA_BARRIER
        barrier();
#endif
        check_record(who)
    }
}

inline check_record(who) {
    for (j : 0 .. BLOCKS - 1) { assert(!placed[record_slot[who * BLOCKS + j]]) }
#ifdef FREED_BEFORE_THE_BARRIER
    free_recorded();
#endif
    j = 0
}

/* I7: what a record frees is on its way back when its barrier has returned. */
inline free_recorded() {
    for (j : 1 .. SLOTS) { if :: state[j] == RECORDED -> state[j] = WAITING :: else fi }
    turn_era();
    turn_era()
}

/* I5: an era ends when nobody reads who registered in the one before it; what is freed waits for two. */
inline turn_era() {
    if
#ifdef READERS_ARE_FORGOTTEN
    :: true ->
#else
    :: readers[!era] == 0 ->
#endif
        era = !era;
        for (j : 1 .. SLOTS) {
            if
#ifdef ONE_ERA
            :: state[j] == WAITING -> state[j] = FREE
#else
            :: state[j] == WAITING -> state[j] = WAITING + 1
            :: state[j] == WAITING + 1 -> state[j] = FREE
#endif
            :: else
            fi
        }
    :: else
    fi
}

/* The record is durable; within the mutex. */
inline acknowledge(who) {
    free_recorded();
    for (j : 0 .. BLOCKS - 1) {
        durable_slot[j] = record_slot[who * BLOCKS + j];
        record_slot[who * BLOCKS + j] = 0
    }
    j = 0
}

/* -- processes ---------------------------------------------------------------------------------------------------- */
proctype writer(byte me) {
    byte n, b, j, k, s, old;
    do
    :: n < WRITES ->
        b = (me + n * (me != 0)) % BLOCKS;
        /* begin: I2, nobody else writes the block; I1, in place only what no snapshot can have */
        atomic {
#ifndef TWO_WRITES_AT_ONCE
            flights[b] == 0;
#endif
            d_step {
                s = 0;
                old = slot_of[b];       /* what is not written is copied from there */
                if
#ifdef IN_PLACE_ALWAYS
                :: slot_of[b] != 0 -> s = slot_of[b]
#else
                :: slot_of[b] != 0 && birth[b] > frozen -> s = slot_of[b]
#endif
                :: else ->
                    for (j : 1 .. SLOTS) { if :: s == 0 && state[j] == FREE -> s = j :: else fi }
                    if :: s != 0 -> check_given_out(s); state[s] = USED :: else fi
                fi;
                if :: s != 0 -> flights[b]++; flight_epoch[me] = epoch; flight_slot[me] = s :: else -> old = 0 fi;
                j = 0; k = 0
            }
        }
        if
        :: s == 0 -> skip               /* the disk is full */
        :: else ->
            atomic {                    /* the data arrived; I6: in the new epoch not before the root is kept */
#ifndef PUBLISHED_WITHIN_A_FENCE
                !(fencing && flight_epoch[me] == epoch);
#endif
                d_step {
                    assert(slot_of[b] == old);              /* I2: nobody else's bytes are lost */
                    for (j : 0 .. BLOCKS - 1) {
                        for (k : 0 .. SNAPSHOTS - 1) { assert(j < kept_from[k] || snapshot_slot[AT(k, j)] != s) }
                    }
                    if
                    :: slot_of[b] != s ->
                        placed[s] = true;
                        slot_of[b] = s;
                        if              /* the free rule */
                        :: old != 0 && birth[b] > (b < cursor -> before : parent) -> give_back(old)
                        :: else
                        fi;
                        birth[b] = flight_epoch[me]
                    :: else
                    fi;
                    flights[b]--; flight_epoch[me] = 0; flight_slot[me] = 0;
                    j = 0; k = 0; s = 0; old = 0
                }
            }
        fi;
        n++
    :: else -> break
    od;
    ended++
}

proctype flush() {
    byte j;
    lock();
#ifdef BARRIER_BEFORE_THE_BATCH
    d_step { barrier() }
    d_step { take(FLUSH); check_record(FLUSH) }
#else
    d_step { take(FLUSH) }
    write_record(FLUSH);
#endif
    d_step { acknowledge(FLUSH); unlock() }
    ended++
}

proctype snapshots() {
    byte n, j, k;
    do
    :: n < SNAPSHOTS ->
        lock();
        d_step {                        /* the fence: a new epoch begins */
#ifndef FROZEN_LATE
            frozen = epoch;
#endif
            epoch++;
            fencing = true
        }
        atomic {                        /* I6: writes of the old one have ended; the root is kept */
#ifndef FENCE_DOES_NOT_WAIT
            (flight_epoch[0] == 0 || flight_epoch[0] == epoch) && (flight_epoch[1] == 0 || flight_epoch[1] == epoch) &&
            (flight_epoch[2] == 0 || flight_epoch[2] == epoch);
#endif
            d_step {
                frozen = epoch - 1;
                for (j : 0 .. BLOCKS - 1) {
                    assert(birth[j] <= frozen);      /* nothing that began behind the fence */
                    for (k : 0 .. WRITERS - 1) { assert(flight_slot[k] == 0 || flight_slot[k] != slot_of[j]) }
                    snapshot_slot[AT(n, j)] = slot_of[j];
                    snapshot_birth[AT(n, j)] = birth[j]
                }
                snapshot_epoch[n] = frozen;
                kept_from[n] = 0;
#ifndef HOLDER_LATE
                before = parent; parent = frozen; cursor = 0;
#endif
                fencing = false;
                take(SNAPSHOT);
                j = 0; k = 0
            }
        }
        write_record(SNAPSHOT);
        d_step {
            acknowledge(SNAPSHOT);
#ifdef HOLDER_LATE
            before = parent; parent = frozen; cursor = 0;
#endif
            durable_from[n] = 0;
            acknowledged[n] = true;
            unlock();
            j = 0
        }
        n++
    :: else -> break
    od;
    ended++
}

/* What stands on a snapshot: the newer one, or the head; and the epoch of what it stands on. */
#define UNDER_HEAD(k) ((k) == 1 || kept_from[1] == BLOCKS)
#define OLDER(k) ((k) == 1 && kept_from[0] < BLOCKS -> snapshot_epoch[0] : 0)

proctype deletes() {
    byte n, which, b, j, k, s, older;
    bool shared;
    do
    :: n < SNAPSHOTS ->
        if
        :: acknowledged[0] && !deleted[0] -> which = 0
        :: acknowledged[1] && !deleted[1] -> which = 1
        :: break                        /* or never */
        fi;
        lock();
        d_step { deleted[which] = true; take(DELETE); j = 0 }
        write_record(DELETE);
        d_step { acknowledge(DELETE); unlock(); j = 0 }
        do
        :: b < BLOCKS ->
            lock();
#ifdef RULE_MOVES_FIRST
            d_step { if :: UNDER_HEAD(which) -> before = OLDER(which); cursor = b + 1 :: else fi }
#endif
            d_step {                    /* I13, a step: a block, the cursor, and the free rule of the head */
                older = OLDER(which);
                s = snapshot_slot[AT(which, b)];
                shared = (UNDER_HEAD(which) -> slot_of[b] == s : snapshot_slot[AT(1, b)] == s);
#ifdef SHARED_IS_FREED
                shared = false;
#endif
                kept_from[which] = b + 1;
                if
                :: UNDER_HEAD(which) ->
#ifndef RULE_STAYS
                    before = older; cursor = b + 1;
#endif
                    if :: b + 1 == BLOCKS -> parent = older; before = 0; cursor = 0 :: else fi
                :: else
                fi;
#ifdef ANCESTORS_ARE_FORGOTTEN
                older = 0;
#endif
                if
                :: s != 0 && !shared && snapshot_birth[AT(which, b)] > older -> give_back(s)
                :: else
                fi;
                take(DELETE);
                j = 0; k = 0; s = 0; older = 0; shared = 0
            }
            write_record(DELETE);
            d_step {
                acknowledge(DELETE);
                b++;
#ifndef CURSOR_NOT_RECORDED
                durable_from[which] = b;
                snapshot_slot[AT(which, b - 1)] = 0; snapshot_birth[AT(which, b - 1)] = 0;
#endif
                unlock();
                j = 0
            }
        :: else -> break
        od;
        b = 0;
        n++
    :: else -> break
    od;
    ended++
}

proctype reader() {
    byte b;
    bit mine;
    atomic {                            /* I5: registered in an era in the moment in which the slot is looked up */
        select_place();
        mine = era;
        readers[mine]++
    }
    d_step { read_slot = 0; readers[mine]--; mine = 0 }
    ended++
}

proctype owners() {
    byte j, k, s;
    bool found;
    ended == PROCESSES;
    d_step { check_owners() }
}

init {
    atomic {
        byte j;
        slot_of[0] = 1; birth[0] = 1; state[1] = USED; durable_slot[0] = 1;
        for (j : 0 .. SNAPSHOTS - 1) { kept_from[j] = BLOCKS; durable_from[j] = BLOCKS }
        run writer(0); run writer(2); run snapshots();
#ifdef TWO_WRITERS
        ended++;
#else
        run writer(1);
#endif
#ifdef NO_FLUSH
        ended++;
#else
        run flush();
#endif
#ifdef NO_DELETES
        ended++;
#else
        run deletes();
#endif
#ifdef NO_READER
        ended++;
#else
        run reader();
#endif
        run owners()
    }
}
