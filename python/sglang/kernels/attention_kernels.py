# pyright: reportCallIssue=false, reportIndexIssue=false, reportPossiblyUnboundVariable=false, reportAssignmentType=false
# Launch options and compile-time branches are beyond the types of Triton's decorators.
"""The kernels of attention over the paged pool (`kernels.attention` launches them).

Sums of scores are kept in units of log 2, because exp2 is what the hardware has. A row's first key is cut by the
window, its last one by the row's own position. Keys and values of 8 bits are widened as they are read: the scale of
keys is a part of that of scores, the scale of values (`lift`) is for what comes out.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _nearest(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first key that a position sees. Of a position -1 (no row) it is 0."""
    if WINDOW > 0:
        return tl.maximum(0, position + 1 - WINDOW)
    elif CHUNK > 0:
        return tl.maximum(0, position) // CHUNK * CHUNK
    else:
        return position * 0


@triton.jit
def _fit(query, keys):
    """Queries in the type that keys are multiplied in. All numbers of 8 bits are float16 numbers too, and two become so
    in one instruction, which bfloat16 takes several for; no query comes near the largest."""
    if keys.dtype.element_ty.primitive_bitwidth == 8 and query.dtype == tl.bfloat16:
        return tl.minimum(tl.maximum(query.to(tl.float32), -65504.0), 65504.0).to(tl.float16)
    else:
        return query


@triton.jit
def _capped(s, scale, cap):
    """cap tanh(scale s / cap), in log 2."""
    return cap * (1.0 - 2.0 / (tl.exp2(s * (scale / cap * 2.0 * LOG2E)) + 1.0)) * LOG2E


@triton.jit
def _scores(q, k, scale, cap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """q: [M, D], k: [N, D] -> [M, N]: in log 2 where capped, else what `_unit` says."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CAPPED:
        s = _capped(s, scale, cap)
    return s


@triton.jit
def _unit(scale, CAPPED: tl.constexpr):
    """What a score of `_scores` is to be multiplied by to be in log 2. Done where exponents are taken, in one
    instruction with the subtraction there."""
    if CAPPED:
        return scale * 0.0 + 1.0
    else:
        return scale * LOG2E


@triton.jit
def _absorb(s, unit, v, most, total, out, PRECISION: tl.constexpr):
    """One block of scores [M, N], already -inf where not seen, into the running softmax, whose `most` is in log 2."""
    new = tl.maximum(most, tl.max(s, 1) * unit)
    safe = tl.where(new == float("-inf"), 0.0, new)
    p = tl.exp2(s * unit - safe[:, None])
    shrink = tl.exp2(most - safe)
    total = total * shrink + tl.sum(p, 1)
    out = out * shrink[:, None]
    out = tl.dot(p.to(v.dtype), v, out, input_precision=PRECISION)
    return new, total, out


@triton.jit
def turned(x, cos, sin, d, mask, TURN: tl.constexpr):
    """What lies at x + d of heads, its first TURN dims rotated. cos, sin (signed): of the token."""
    a = tl.load(x + d, mask=mask, other=0.0)
    if TURN > 0:
        HALF: tl.constexpr = TURN // 2
        other = tl.load(x + tl.where(d < HALF, d + HALF, d - HALF), mask=mask & (d < TURN), other=0.0)
        c = tl.load(cos + d, mask=d < TURN, other=1.0).to(tl.float32)
        s = tl.load(sin + d, mask=d < TURN, other=0.0).to(tl.float32)
        a = (a.to(tl.float32) * c + other.to(tl.float32) * s).to(a.dtype)
    return a


@triton.jit
def narrowed(x, down, to, MOST: tl.constexpr):
    """x as the type of what `to` points to; MOST: the largest there, of 8 bits, where what is larger becomes that."""
    if MOST > 0:
        x = tl.minimum(tl.maximum(x.to(tl.float32) * down, -MOST), MOST)
    return x.to(to.dtype.element_ty)


@triton.jit(do_not_specialize=["splits", "width"])
def decode_part(
    q,
    k,
    v,
    cos,
    sin,
    keys,
    values,
    out,
    parts,
    norms,
    sinks,
    slots,
    positions,
    places,
    own,
    table,
    q_row,
    k_row,
    v_row,
    table_row,
    scale,
    lift,
    cap,
    k_down,
    v_down,
    splits,
    width,
    GROUP: tl.constexpr,
    KV: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    FILES: tl.constexpr,  # the row's own key and value are k and v, not rotated as q is not, and not in the pool yet
    TURN: tl.constexpr,
    MOST: tl.constexpr,
    PARTED: tl.constexpr,  # parts and norms are written, not out
    LATE: tl.constexpr,  # splits is where their number lies, width what there is room for besides
    SHARED: tl.constexpr,  # what stands before key own[row] is read elsewhere
    PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    if LATE:
        splits = tl.load(splits).to(tl.int32)
        width += splits
        split = row % splits
        row = row // splits
    slot = tl.load(slots + row).to(tl.int64)
    length = tl.where(slot < 0, 0, tl.load(positions + row).to(tl.int32) + 1)
    if SHARED:
        nearest = tl.load(own + row).to(tl.int32)
    else:
        nearest = _nearest(length - 1, WINDOW, CHUNK)
    first = nearest // BLOCK_N * BLOCK_N
    share = tl.cdiv(tl.cdiv(length - first, BLOCK_N), splits) * BLOCK_N
    begin = first + split * share
    end = tl.minimum(begin + share, length)
    place = tl.load(places + row).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    head = kv * GROUP + g
    mine = (g < GROUP)[:, None] & (d < DIM)[None, :]
    most = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    unit = _unit(scale, CAPPED)
    if begin < end:
        if FILES:
            filed = tl.minimum(end, length - 1)
            cos += place * TURN
            sin += place * TURN
        else:
            filed = end
        query = _fit(turned(q + place * q_row + head[:, None] * DIM, cos, sin, d[None, :], mine, TURN), keys)
        pages = table + slot * table_row
        for at in range(begin, filed, BLOCK_N):
            position = at + n
            there = position < filed
            page = tl.load(pages + position // PAGE, mask=there, other=0).to(tl.int64)
            cell = (page * PAGE + position % PAGE) * (KV * DIM) + kv * DIM
            read = there[:, None] & (d < DIM)[None, :]
            key = tl.load(keys + cell[:, None] + d[None, :], mask=read, other=0.0)
            value = tl.load(values + cell[:, None] + d[None, :], mask=read, other=0.0)
            s = _scores(query, key.to(query.dtype), scale, cap, CAPPED, PRECISION)
            s = tl.where((there & (position >= nearest))[None, :], s, float("-inf"))
            most, total, acc = _absorb(s, unit, value.to(query.dtype), most, total, acc, PRECISION)
        if FILES:  # noqa: SIM102 - known when it is compiled
            if end == length:
                page = tl.load(pages + (length - 1) // PAGE).to(tl.int64)
                cell = (page * PAGE + (length - 1) % PAGE) * (KV * DIM) + kv * DIM
                own_key = narrowed(turned(k + place * k_row + kv * DIM, cos, sin, d, d < DIM, TURN), k_down, keys, MOST)
                own_value = narrowed(tl.load(v + place * v_row + kv * DIM + d, mask=d < DIM), v_down, values, MOST)
                tl.store(keys + cell + d, own_key, mask=d < DIM)
                tl.store(values + cell + d, own_value, mask=d < DIM)
                own_key = tl.where(d < DIM, own_key.to(query.dtype).to(tl.float32), 0.0)
                own_value = tl.where(d < DIM, own_value.to(query.dtype).to(tl.float32), 0.0)
                one = tl.sum(query.to(tl.float32) * own_key[None, :], 1)
                if CAPPED:
                    one = _capped(one, scale, cap)
                new = tl.maximum(most, one * unit)
                p = tl.exp2(one * unit - new)
                shrink = tl.exp2(most - new)
                total = total * shrink + p
                acc = acc * shrink[:, None] + p.to(query.dtype).to(tl.float32)[:, None] * own_value[None, :]
                most = new
    if not PARTED:
        if SINKS:
            sink = tl.load(sinks + head, mask=g < GROUP, other=0.0).to(tl.float32) * LOG2E
            new = tl.maximum(most, sink)
            acc *= tl.exp2(most - new)[:, None]
            total = total * tl.exp2(most - new) + tl.exp2(sink - new)
        acc = acc * (lift / tl.where(total == 0.0, 1.0, total))[:, None]
        to = out + place * (KV * GROUP * DIM) + head[:, None] * DIM + d[None, :]
        tl.store(to, acc.to(out.dtype.element_ty), mask=mine)
    else:
        here = (row.to(tl.int64) * (KV * GROUP) + head) * width + split
        norm = most + tl.log2(tl.where(total == 0.0, 1.0, total))
        tl.store(norms + here, norm, mask=g < GROUP)
        if begin < end:
            acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
            tl.store(parts + here[:, None] * DIM + d[None, :], acc, mask=mine)


@triton.jit(do_not_specialize=["splits", "width"])
def shared_tile(
    q,
    keys,
    values,
    parts,
    norms,
    tiles,
    members,
    places,
    table,
    q_row,
    table_row,
    scale,
    cap,
    splits,
    width,
    GROUP: tl.constexpr,
    KV: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    CAPPED: tl.constexpr,
    LATE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A stretch of keys for all heads of a KV head of several rows: BLOCK_M // GROUP rows at most."""
    tile = tiles + tl.program_id(0) * 6
    kv = tl.program_id(1)
    if LATE:
        splits = tl.load(splits).to(tl.int32)
        width += splits
    slot = tl.load(tile).to(tl.int64)
    if slot >= 0:
        begin = tl.load(tile + 1).to(tl.int32)
        end = tl.load(tile + 2).to(tl.int32)
        entry = tl.load(tile + 3).to(tl.int32)
        at = tl.load(tile + 4).to(tl.int32)
        count = tl.load(tile + 5).to(tl.int32)
        m = tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        n = tl.arange(0, BLOCK_N)
        head = kv * GROUP + m % GROUP
        there = m < count * GROUP
        row = tl.load(members + at + m // GROUP, mask=there, other=0).to(tl.int64)
        place = tl.load(places + row, mask=there, other=0).to(tl.int64)
        mine = there[:, None] & (d < DIM)[None, :]
        query = _fit(tl.load(q + (place * q_row + head * DIM)[:, None] + d[None, :], mask=mine, other=0.0), keys)
        most = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        unit = _unit(scale, CAPPED)
        pages = table + slot * table_row
        for first in range(begin, end, BLOCK_N):
            key = first + n
            page = tl.load(pages + key // PAGE).to(tl.int64)
            cell = (page * PAGE + key % PAGE) * (KV * DIM) + kv * DIM
            k = tl.load(keys + cell[:, None] + d[None, :], mask=(d < DIM)[None, :], other=0.0)
            v = tl.load(values + cell[:, None] + d[None, :], mask=(d < DIM)[None, :], other=0.0)
            s = _scores(query, k.to(query.dtype), scale, cap, CAPPED, PRECISION)
            most, total, acc = _absorb(s, unit, v.to(query.dtype), most, total, acc, PRECISION)
        here = (row * (KV * GROUP) + head) * width + splits + entry
        safe = tl.where(total == 0.0, 1.0, total)
        tl.store(norms + here, most + tl.log2(safe), mask=there)
        tl.store(parts + here[:, None] * DIM + d[None, :], acc / safe[:, None], mask=mine)


@triton.jit(do_not_specialize=["splits", "width"])
def merge_parts(
    parts,
    norms,
    out,
    sinks,
    places,
    used,
    lift,
    splits,
    width,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SINKS: tl.constexpr,
    LATE: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    if LATE:
        splits = tl.load(splits).to(tl.int32)
        width += splits
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    place = tl.load(places + row).to(tl.int64)
    if place >= 0:
        d = tl.arange(0, BLOCK_D)
        split = tl.arange(0, BLOCK_S)
        here = (row * HEADS + head) * width + split
        filled = splits
        if SHARED:
            filled += tl.load(used + row).to(tl.int32)
        norm = tl.load(norms + here, mask=split < filled, other=float("-inf"))
        some = norm > float("-inf")
        most = tl.max(norm, 0)
        if SINKS:
            sink = tl.load(sinks + head).to(tl.float32) * LOG2E
            most = tl.maximum(most, sink)
        most = tl.where(most == float("-inf"), 0.0, most)
        weight = tl.exp2(norm - most)
        total = tl.sum(weight, 0)
        if SINKS:
            total += tl.exp2(sink - most)
        part = tl.load(parts + here[:, None] * DIM + d[None, :], mask=some[:, None] & (d < DIM)[None, :], other=0.0)
        whole = tl.sum(part * weight[:, None], 0) * (lift / tl.where(total == 0.0, 1.0, total))
        tl.store(out + (place * HEADS + head) * DIM + d, whole.to(out.dtype.element_ty), mask=d < DIM)


@triton.jit
def extend_tile(
    q,
    keys,
    values,
    out,
    sinks,
    tiles,
    table,
    q_row,
    table_row,
    scale,
    lift,
    cap,
    HEADS: tl.constexpr,
    KV: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    PACK: tl.constexpr,  # heads of a KV head, side by side in a tile: BLOCK_M // PACK tokens
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile = tiles + tl.program_id(1) * 5
    slot = tl.load(tile).to(tl.int64)
    start = tl.load(tile + 1).to(tl.int32)
    count = tl.load(tile + 2).to(tl.int32)
    place = tl.load(tile + 3).to(tl.int64)
    at = tl.load(tile + 4).to(tl.int32)
    r = tl.arange(0, BLOCK_M)
    m = at + r // PACK
    head = tl.program_id(0) * PACK + r % PACK
    kv = tl.program_id(0) * PACK // (HEADS // KV)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    position = start + m
    there = (m < count) & (r < BLOCK_M // PACK * PACK)
    mine = there[:, None] & (d < DIM)[None, :]
    query = _fit(tl.load(q + ((place + m) * q_row + head * DIM)[:, None] + d[None, :], mask=mine, other=0.0), keys)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    unit = _unit(scale, CAPPED)
    pages = table + slot * table_row
    end = start + tl.minimum(count, at + BLOCK_M // PACK)
    if WINDOW > 0 or CHUNK > 0:
        first = _nearest(start + at, WINDOW, CHUNK) // BLOCK_N * BLOCK_N
    else:
        # Keys that every query of the tile sees need no mask.
        first = (start + at + 1) // BLOCK_N * BLOCK_N
        for begin in range(0, first, BLOCK_N):
            key = begin + n
            page = tl.load(pages + key // PAGE).to(tl.int64)
            cell = (page * PAGE + key % PAGE) * (KV * DIM) + kv * DIM
            k = tl.load(keys + cell[:, None] + d[None, :], mask=(d < DIM)[None, :], other=0.0)
            v = tl.load(values + cell[:, None] + d[None, :], mask=(d < DIM)[None, :], other=0.0)
            s = _scores(query, k.to(query.dtype), scale, cap, CAPPED, PRECISION)
            most, total, acc = _absorb(s, unit, v.to(query.dtype), most, total, acc, PRECISION)
    for begin in range(first, end, BLOCK_N):
        key = begin + n
        known = key < end
        page = tl.load(pages + key // PAGE, mask=known, other=0).to(tl.int64)
        cell = (page * PAGE + key % PAGE) * (KV * DIM) + kv * DIM
        read = known[:, None] & (d < DIM)[None, :]
        k = tl.load(keys + cell[:, None] + d[None, :], mask=read, other=0.0)
        v = tl.load(values + cell[:, None] + d[None, :], mask=read, other=0.0)
        s = _scores(query, k.to(query.dtype), scale, cap, CAPPED, PRECISION)
        seen = (key[None, :] <= position[:, None]) & known[None, :]
        if WINDOW > 0 or CHUNK > 0:
            seen = seen & (key[None, :] >= _nearest(position, WINDOW, CHUNK)[:, None])
        s = tl.where(seen, s, float("-inf"))
        most, total, acc = _absorb(s, unit, v.to(query.dtype), most, total, acc, PRECISION)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        new = tl.maximum(most, sink)
        acc *= tl.exp2(most - new)[:, None]
        total = total * tl.exp2(most - new) + tl.exp2(sink - new)
    acc = acc * (lift / tl.where(total == 0.0, 1.0, total))[:, None]
    to = out + (((place + m) * HEADS + head) * DIM)[:, None] + d[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=mine)
