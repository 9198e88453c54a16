/* Election and adoption of plans: three peers, one of them a liar, two epochs of two terms, loss and crashes.
 *
 * The rules are those of ravnest_p2p/core/election.py, ballot.py and obedience.py. Left out is what safety must
 * not rest on, so whatever it would forbid is allowed here:
 *   time      a peer may believe in any term of its epoch at any time, and epochs end whenever they like;
 *   tickets   whoever thinks that it leads, leads;
 *   verdicts  any plan may look sound;
 *   delivery  who never reads a plan has lost it, and who reads it late or twice may.
 * The liar signs as itself only, and has published all that it ever could: any plan of any term, and two for each.
 *
 * A fence is 1 + epoch * TERMS + term, 0 for none. A plan is 1 + 2 * author + variant, 0 for none; two variants are
 * what one author could plan from different facts.
 *
 * Safety:
 *   fenced   what is on a peer's disk only ever rises;
 *   one      a peer never acts on two plans of one fence, nor on a lower one, whatever crashes came between;
 *   honest   an honest leader never publishes two plans for one fence, whatever crashes came between;
 *   apart    a worker takes up no generation at or below one that it, or the worker before it, obeyed.
 *
 * `make model-check` searches every state, and shows that each of four mistakes would be found:
 *   ACT_FIRST      a plan is acted upon before it is on disk
 *   PUBLISH_FIRST  a leader publishes before it has adopted
 *   NO_FENCE       a plan of the fence obeyed is adopted, too
 *   FORGETFUL      a worker's highest generation is not on disk
 */

#define HONEST 2
#define LIAR 2
#define EPOCHS 2
#define TERMS 2
#define MOST_CRASHES 2

#define EPOCH_OF(fence) (((fence) - 1) / TERMS)
#define PLAN(author, variant) (1 + 2 * (author) + (variant))

#ifdef NO_FENCE
#define ABOVE(fence, adopted) ((fence) >= (adopted))
#else
#define ABOVE(fence, adopted) ((fence) > (adopted))
#endif

/* What is due is first written and then done; `half` says that the first of both has happened. */
#ifdef ACT_FIRST
#define TO_WRITE (due_fence != 0 && half)
#define TO_ACT (due_fence != 0 && !half)
#else
#define TO_WRITE (due_fence != 0 && !half)
#define TO_ACT (due_fence != 0 && half)
#endif

/* The directory, without what the liar put there: by fence and plan. */
bool published[16];
#define PUBLISHED(fence, plan) published[((fence) - 1) * 2 * HONEST + (plan) - 1]

byte crashes = 0;

/* On disk. */
byte adopted_fence[HONEST];
byte adopted_plan[HONEST];
byte floor_fence[HONEST];

/* What really happened, which no crash forgets. */
byte acted_fence[HONEST];
byte acted_plan[HONEST];
byte worked_fence[HONEST];

inline publish(f, p) {
    assert(!PUBLISHED(f, PLAN(me, 0)) || p == PLAN(me, 0)); /* honest */
    assert(!PUBLISHED(f, PLAN(me, 1)) || p == PLAN(me, 1));
    PUBLISHED(f, p) = true
}

inline write() {
    assert(due_fence > adopted_fence[me] ||
           (due_fence == adopted_fence[me] && due_plan == adopted_plan[me])); /* fenced */
    adopted_fence[me] = due_fence; adopted_plan[me] = due_plan
}

inline act() {
    assert(due_fence > acted_fence[me] ||
           (due_fence == acted_fence[me] && due_plan == acted_plan[me])); /* one */
    acted_fence[me] = due_fence; acted_plan[me] = due_plan;
    if
    :: due_fence > floor_fence[me] ->
        assert(due_fence > worked_fence[me]); /* apart */
        floor_fence[me] = due_fence; worked_fence[me] = due_fence
    :: else -> skip
    fi
}

inline first_or_second() {
    if
    :: half -> half = false; due_fence = 0; due_plan = 0
    :: else -> half = true
    fi
}

/* It leads, as it believes: it adopts a plan of its own, and then publishes it. */
#ifdef PUBLISH_FIRST
#define THEN_POST(fence, plan) publish(fence, plan)
#else
#define THEN_POST(fence, plan) post_fence = fence; post_plan = plan
#endif
#define LEADS(fence, plan) \
    d_step { EPOCH_OF(fence) == epoch && fence > made && due_fence == 0 && post_fence == 0 && \
             ABOVE(fence, adopted_fence[me]) -> \
        made = fence; due_fence = fence; due_plan = plan; THEN_POST(fence, plan) }

/* It reads a plan of its epoch, above the one that it obeys. */
#define READS(fence, plan, there) \
    d_step { due_fence == 0 && EPOCH_OF(fence) == epoch && ABOVE(fence, adopted_fence[me]) && (there) -> \
        due_fence = fence; due_plan = plan }
#define READS_OF(author, fence) \
    :: READS(fence, PLAN(author, 0), PUBLISHED(fence, PLAN(author, 0))) \
    :: READS(fence, PLAN(author, 1), PUBLISHED(fence, PLAN(author, 1)))

#define WITH(fence) \
    :: LEADS(fence, PLAN(me, 0)) \
    :: LEADS(fence, PLAN(me, 1)) \
    READS_OF(0, fence) \
    READS_OF(1, fence) \
    :: READS(fence, PLAN(LIAR, 0), true) \
    :: READS(fence, PLAN(LIAR, 1), true)

proctype Peer(byte me) {
    byte epoch = 0;
    byte made = 0;                      /* the highest fence that it led in this life */
    byte due_fence = 0, due_plan = 0;   /* a plan that is taken up */
    bool half = false;
    byte post_fence = 0, post_plan = 0; /* a plan of its own that is to be published */

    do
    :: d_step { epoch + 1 < EPOCHS -> epoch++ }
    WITH(1)
    WITH(2)
    WITH(3)
    WITH(4)
    :: d_step { post_fence != 0 && adopted_fence[me] == post_fence ->
            publish(post_fence, post_plan);
            post_fence = 0; post_plan = 0
        }
    :: d_step { adopted_fence[me] > post_fence -> post_fence = 0; post_plan = 0 }

    /* What is due is written to disk, and acted upon: the worker takes up the plan's generation. */
    :: d_step { TO_WRITE -> write(); first_or_second() }
    :: d_step { TO_ACT -> act(); first_or_second() }

    /* It crashes and starts again; what is on disk remains, and the plan there is taken up again. */
    :: d_step { crashes < MOST_CRASHES ->
            crashes++;
            made = 0; post_fence = 0; post_plan = 0;
#ifdef FORGETFUL
            floor_fence[me] = 0;
#endif
            if
            :: adopted_fence[me] != 0 && EPOCH_OF(adopted_fence[me]) == epoch ->
                due_fence = adopted_fence[me]; due_plan = adopted_plan[me]; half = true
            :: else ->
                due_fence = 0; due_plan = 0; half = false
            fi
        }
    od
}

init {
    atomic { run Peer(0); run Peer(1) }
}
