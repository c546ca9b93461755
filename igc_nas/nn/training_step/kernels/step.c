/* A training step in a fixed physical order of channels: what an array of operations says is done, in turn.

   Activations and their gradients are stored as `element` (float32, or bfloat16 where BF16 is defined), pixels outermost,
   channels in the physical order, a multiple of LANES of them. A few images at a time are read into float32 scratch that
   fits into the second-level cache, within a frame of zeros where a convolution reads beyond the border; all arithmetic is
   done there in float32. Sums over the batch (statistics, gradients of batch norm) are in double.

   What precedes this text when it is compiled: LANES, BF16 or not, and the register tiles (`tiles.py`):
       conv_tiles[vectors of outputs][kind][pixels], weight_tiles[vectors of outputs][kind][terms].
   The structs mirror those in `operations.py`. */

/* Scratch: pixel (y, x) of image n is at + n * image + y * row + x * pixel. */
typedef struct {
    float *at;
    long image;
    int row, pixel, height, width;
} area;

/* A stored tensor as its readers see it: act(x * scale + offset); a plain one where scale is null. */
typedef struct {
    const element *x;
    const float *scale, *offset, *mean;
    int act; /* 0 none, 1 ReLU, 2 ReLU6 */
} view;

typedef struct {
    view from;
    area to;
} load_view;

/* The gradient of a convolution's output x, from the gradient g behind its batch norm:
   g * scale - x * slope - constant; g alone where scale is null. */
typedef struct {
    const element *g, *x;
    const float *scale, *slope, *constant;
    area to;
} load_gradient;

/* out[target + ...] = sum over terms of weight * in[offset + ...]: a convolution, or the gradient of its input. */
typedef struct {
    area in, out;
    const int *offsets, *targets; /* (tiles, terms), (tiles, vectors) */
    const float *weights;         /* (tiles, terms, vectors, LANES) */
    int tiles, terms, vectors, pixels;
    int kind; /* of its tiles: 0 vectors, 1 broadcast, 2 and 3 the same of pairs of bfloat16 */
    int height, width, in_row, in_pixel, out_row, out_pixel, flat;
} product;

/* gradient += sum over pixels of in[offset + ...] * out[target + ...], in the layout of a product's weights. */
typedef struct {
    const product *of;
    area out;
    float *gradient;
    int out_row, out_pixel, flat;
} weight_gradient;

/* Each float of scratch, frames included, and the one `step` floats behind it as a pair of bfloat16. */
typedef struct {
    float *from, *to;
    long floats, step; /* of `at_a_time` images */
} pair;

/* Scratch without a frame as pairs of neighbouring channels, in half the place. */
typedef struct {
    float *from;
    void *to;
    long floats; /* of `from`, of `at_a_time` images */
} channel_pairs;

typedef struct {
    area from, to;
    const int *source; /* for each position of `to` that of `from`; -1: zero */
} permute;

/* Store scratch as a tensor; where `sum` is not null, add the sums of x - shift and of its square over the pixels. The
   shift is the batch's first pixel: without it the variance of values far from 0 is lost in cancellation. */
typedef struct {
    area from;
    element *to;
    float *shift;
    double *sum, *square;
} store;

/* Store scratch, plus what is stored already where `add`, as the gradient of a view. `last`: nothing more is added, so the
   activation is undone, and the sums of g and of g * (x - mean) are added to `sum` and `product` for the batch norm. */
typedef struct {
    area from;
    element *to;
    view of;
    double *sum, *product;
    int add, last;
} store_gradient;

/* The gradient behind a sum's activation, by the stored sum. */
typedef struct {
    const element *g, *sum;
    int act;
    area to;
} load_sum_gradient;

typedef struct {
    const float *pooled; /* (images, channels): the gradient of the means, in logical order */
    const int *channel;  /* of each position; -1: none */
    int channels;
    area to;
} load_pool_gradient;

/* Batch norm: from sums over the batch to scale and offset, and back. `channel`: that of each position; -1: padding. */
typedef struct {
    const int *channel;
    const float *weight, *bias;
    float *running_mean, *running_var, *shift, *mean, *inverse, *scale, *offset, *slope, *constant;
    double *sum, *square, *grad_sum, *grad_product;
    float *grad_weight, *grad_bias;
    double momentum, eps;
    long pixels; /* of an image */
    int depth, training;
} norm;

typedef struct {
    view a, b;
    element *to;
    long image; /* elements */
    int depth, act;
} sum_views;

typedef struct {
    view from;
    float *pooled;
    const int *channel;
    int channels, depth;
    long pixels;
} pool;

typedef struct {
    const float *from;
    float *to;
    const int *index; /* of each entry of `to`, its place in `from`; -1: zero */
    long count;
} pack;

typedef struct {
    const float *from;
    float *to;
    const int *index; /* of each entry of `from`, its place in `to`; -1: dropped */
    long count;
} unpack;

typedef struct {
    void *at;
    long bytes;
} zero;

enum {
    LOAD_VIEW, LOAD_GRADIENT, PRODUCT, WEIGHT_GRADIENT, PERMUTE, STORE_TENSOR, STORE_GRADIENT, LOAD_SUM_GRADIENT,
    LOAD_POOL_GRADIENT, NORM, NORM_GRADIENT, SUM_VIEWS, POOL, PACK, UNPACK, ZERO, BLOCKS,
    PAIR, PACK_PAIRS, CHANNEL_PAIRS
};

typedef struct {
    int kind;
    const void *what;
} operation;

/* Operations that are done for `at_a_time` images, then for the next ones. */
typedef struct {
    const operation *operations;
    int count, at_a_time;
} blocks;

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define EACH_PIXEL(n, y, images, area) for (long n = 0; n < (images); n++) for (long y = 0; y < (area).height; y++)

static inline vec activated(vec value, int act)
{
    const vec zero_ = {0}, six = zero_ + 6.0f;
    if (act) value = (vec)(~(ints)(value < zero_) & (ints)value); /* not max(): NaN stays NaN */
    if (act == 2) value = (vec)(((ints)(value > six) & (ints)six) | (~(ints)(value > six) & (ints)value));
    return value;
}

/* `g` where the derivative of the activation at `before` is 1, else 0. */
static inline vec passed(vec g, vec before, int act)
{
    const vec zero_ = {0}, six = zero_ + 6.0f;
    if (act) g = (vec)((ints)(before > zero_) & (ints)g);
    if (act == 2) g = (vec)((ints)(before < six) & (ints)g);
    return g;
}

static inline vec seen(const view *v, long at, int c)
{
    vec value = read(v->x + at);
    if (v->scale) value = activated(value * LOAD(v->scale + c) + LOAD(v->offset + c), v->act);
    return value;
}

static void do_load_view(const load_view *op, long first, long images)
{
    const area *to = &op->to;
    const int depth = to->pixel;
    const long line = (long)to->width * depth;
    const view v = op->from;
    EACH_PIXEL(n, y, images, *to) {
        const element *x = v.x + ((first + n) * to->height + y) * line;
        float *out = to->at + n * to->image + y * to->row;
        if (depth % LANES) { /* the input images */
            for (long i = 0; i < line; i++) out[i] = read_one(x + i);
        } else if (!v.scale) {
            for (long i = 0; i < line; i += LANES) STORE(out + i, read(x + i));
        } else {
            for (long i = 0; i < line; i += depth)
                for (int c = 0; c < depth; c += LANES) {
                    const vec value = read(x + i + c) * LOAD(v.scale + c) + LOAD(v.offset + c);
                    STORE(out + i + c, activated(value, v.act));
                }
        }
    }
}

static void do_load_gradient(const load_gradient *op, long first, long images)
{
    const area *to = &op->to;
    const int depth = to->pixel;
    const long line = (long)to->width * depth;
    EACH_PIXEL(n, y, images, *to) {
        const long at = ((first + n) * to->height + y) * line;
        const element *g = op->g + at, *x = op->x + at;
        float *out = to->at + n * to->image + y * to->row;
        if (!op->scale) {
            for (long i = 0; i < line; i += LANES) STORE(out + i, read(g + i));
            continue;
        }
        for (long i = 0; i < line; i += depth)
            for (int c = 0; c < depth; c += LANES)
                STORE(out + i + c, read(g + i + c) * LOAD(op->scale + c) - read(x + i + c) * LOAD(op->slope + c) -
                                       LOAD(op->constant + c));
    }
}

static void do_product(const product *p, long images)
{
    const int whole = p->flat ? 1 : p->height;
    const int width = p->flat ? (int)(images * p->height * p->width) : p->width;
    const conv_tile *tile_of = conv_tiles[p->vectors][p->kind];
    if (p->flat) images = 1;
    for (int t = 0; t < p->tiles; t++) {
        const int *offsets = p->offsets + (long)t * p->terms, *targets = p->targets + (long)t * p->vectors;
        const float *weights = p->weights + (long)t * p->terms * p->vectors * LANES;
        for (long n = 0; n < images; n++)
            for (int y = 0; y < whole; y++) {
                const float *in = p->in.at + n * p->in.image + (long)y * p->in_row;
                float *out = p->out.at + n * p->out.image + (long)y * p->out_row;
                for (int x = 0; x < width; x += p->pixels)
                    tile_of[MIN(p->pixels, width - x)](in + (long)x * p->in_pixel, p->in_pixel, offsets, p->terms,
                                                       weights, out + (long)x * p->out_pixel, p->out_pixel, targets);
            }
    }
}

static void do_weight_gradient(const weight_gradient *op, long images)
{
    const product *p = op->of;
    const int height = op->flat ? 1 : p->height;
    const int width = op->flat ? (int)(images * p->height * p->width) : p->width;
    const weight_tile *tile_of = weight_tiles[p->vectors][p->kind];
    const int most = most_terms[p->vectors], step = p->kind > 1 ? 2 : 1; /* pixels, of which the second may be a zero */
    const pixels_at at = {p->in.image, op->out.image, op->flat ? 1 : images, p->in_row, op->out_row, height,
                          step * p->in_pixel, step * op->out_pixel, (width + step - 1) / step};
    for (int t = 0; t < p->tiles; t++) {
        const int *offsets = p->offsets + (long)t * p->terms, *targets = p->targets + (long)t * p->vectors;
        float *gradient = op->gradient + (long)t * p->terms * p->vectors * LANES;
        for (int i = 0; i < p->terms; i += most) {
            const int terms = MIN(most, p->terms - i);
            tile_of[terms](p->in.at, offsets + i, op->out.at, targets, &at, gradient + (long)i * p->vectors * LANES);
        }
    }
}

static void do_permute(const permute *op, long images)
{
    const area *from = &op->from, *to = &op->to;
    EACH_PIXEL(n, y, images, *to) {
        const float *in = from->at + n * from->image + y * from->row;
        float *out = to->at + n * to->image + y * to->row;
        for (int c = 0; c < to->pixel; c++) {
            const long source = op->source[c];
            for (long x = 0; x < to->width; x++)
                out[x * to->pixel + c] = source < 0 ? 0.0f : in[x * from->pixel + source];
        }
    }
}

/* Adjacent vectors whose sums are kept in registers together: a cache line of bfloat16. */
#define TOGETHER 4
#define FOR_CHANNELS(depth, part)                                                                                      \
    {                                                                                                                  \
        int c = 0;                                                                                                     \
        for (; c + TOGETHER * LANES <= (depth); c += TOGETHER * LANES) part(op, first, images, c, TOGETHER);           \
        for (; c < (depth); c += LANES) part(op, first, images, c, 1);                                                 \
    }

static inline __attribute__((always_inline)) void store_part(const store *op, long first, long images, int c, int count)
{
    const area *from = &op->from;
    const int depth = from->pixel;
    const long line = (long)from->width * depth;
    vec sum[TOGETHER] = {{0}}, square[TOGETHER] = {{0}}, shift[TOGETHER] = {{0}};
    for (int k = 0; op->sum && k < count; k++) shift[k] = LOAD(op->shift + c + k * LANES);
    EACH_PIXEL(n, y, images, *from) {
        const float *in = from->at + n * from->image + y * from->row + c;
        element *out = op->to + ((first + n) * from->height + y) * line + c;
        for (long i = 0; i < line; i += depth)
            for (int k = 0; k < count; k++) {
                const vec value = LOAD(in + i + k * LANES), d = value - shift[k];
                write(out + i + k * LANES, value);
                sum[k] += d;
                square[k] += d * d;
            }
    }
    for (int k = 0; op->sum && k < count; k++)
        for (int l = 0; l < LANES; l++) {
            op->sum[c + k * LANES + l] += sum[k][l];
            op->square[c + k * LANES + l] += square[k][l];
        }
}

static void do_store(const store *op, long first, long images)
{
    if (op->sum && first == 0) memcpy(op->shift, op->from.at, op->from.pixel * sizeof *op->shift);
    FOR_CHANNELS(op->from.pixel, store_part)
}

static inline __attribute__((always_inline)) void store_gradient_part(const store_gradient *op, long first, long images,
                                                                      int c, int count)
{
    const area *from = &op->from;
    const int depth = from->pixel, normed = op->last && op->of.scale != 0, act = op->of.act;
    const long line = (long)from->width * depth;
    vec sum[TOGETHER] = {{0}}, dot[TOGETHER] = {{0}}, a[TOGETHER] = {{0}}, b[TOGETHER] = {{0}}, mean[TOGETHER] = {{0}};
    for (int k = 0; normed && k < count; k++) {
        a[k] = LOAD(op->of.scale + c + k * LANES);
        b[k] = LOAD(op->of.offset + c + k * LANES);
        mean[k] = LOAD(op->of.mean + c + k * LANES);
    }
    EACH_PIXEL(n, y, images, *from) {
        const float *in = from->at + n * from->image + y * from->row + c;
        const long at = ((first + n) * from->height + y) * line + c;
        element *out = op->to + at;
        const element *x = op->of.x + at;
        for (long i = 0; i < line; i += depth)
            for (int k = 0; k < count; k++) {
                const long here = i + k * LANES;
                vec g = LOAD(in + here);
                if (op->add) g += read(out + here);
                if (normed) {
                    const vec value = read(x + here);
                    g = passed(g, value * a[k] + b[k], act);
                    sum[k] += g;
                    dot[k] += g * (value - mean[k]);
                }
                write(out + here, g);
            }
    }
    for (int k = 0; normed && k < count; k++)
        for (int l = 0; l < LANES; l++) {
            op->sum[c + k * LANES + l] += sum[k][l];
            op->product[c + k * LANES + l] += dot[k][l];
        }
}

static void do_store_gradient(const store_gradient *op, long first, long images)
{
    FOR_CHANNELS(op->from.pixel, store_gradient_part)
}

static void do_load_sum_gradient(const load_sum_gradient *op, long first, long images)
{
    const area *to = &op->to;
    const long line = (long)to->width * to->pixel;
    EACH_PIXEL(n, y, images, *to) {
        const long at = ((first + n) * to->height + y) * line;
        float *out = to->at + n * to->image + y * to->row;
        for (long i = 0; i < line; i += LANES)
            STORE(out + i, passed(read(op->g + at + i), read(op->sum + at + i), op->act));
    }
}

static void do_load_pool_gradient(const load_pool_gradient *op, long first, long images)
{
    const area *to = &op->to;
    const float share = 1.0f / ((float)to->height * (float)to->width);
    EACH_PIXEL(n, y, images, *to) {
        const float *g = op->pooled + (first + n) * op->channels;
        for (int x = 0; x < to->width; x++) {
            float *out = to->at + n * to->image + y * to->row + (long)x * to->pixel;
            for (int c = 0; c < to->pixel; c++) out[c] = op->channel[c] < 0 ? 0.0f : g[op->channel[c]] * share;
        }
    }
}

static void do_norm(const norm *op, long images)
{
    const double count = (double)images * op->pixels;
    for (int p = 0; p < op->depth; p++) {
        const int c = op->channel[p];
        op->mean[p] = op->inverse[p] = op->scale[p] = op->offset[p] = 0.0f;
        if (c < 0) continue;
        double mean = op->running_mean[c], var = op->running_var[c];
        if (op->training) {
            const double d = op->sum[p] / count;
            mean = op->shift[p] + d;
            var = op->square[p] / count - d * d;
            if (var < 0) var = 0;
            op->running_mean[c] += op->momentum * (mean - op->running_mean[c]);
            op->running_var[c] += op->momentum * (var * count / (count - 1) - op->running_var[c]);
        }
        const double inverse = 1 / sqrt(var + op->eps), scale = op->weight[c] * inverse;
        op->mean[p] = mean;
        op->inverse[p] = inverse;
        op->scale[p] = scale;
        op->offset[p] = op->bias[c] - mean * scale;
    }
}

static void do_norm_gradient(const norm *op, long images)
{
    const double count = (double)images * op->pixels;
    for (int p = 0; p < op->depth; p++) {
        const int c = op->channel[p];
        op->slope[p] = op->constant[p] = 0.0f;
        if (c < 0) continue;
        const double inverse = op->inverse[p], scale = op->scale[p];
        const double slope = scale * op->grad_product[p] * inverse * inverse / count;
        op->grad_weight[c] = op->grad_product[p] * inverse;
        op->grad_bias[c] = op->grad_sum[p];
        op->slope[p] = slope;
        op->constant[p] = scale * op->grad_sum[p] / count - slope * op->mean[p];
    }
}

static void do_sum_views(const sum_views *op, long images)
{
    for (long n = 0; n < images; n++)
        for (long i = n * op->image; i < (n + 1) * op->image; i += op->depth)
            for (int c = 0; c < op->depth; c += LANES)
                write(op->to + i + c, activated(seen(&op->a, i + c, c) + seen(&op->b, i + c, c), op->act));
}

static void do_pool(const pool *op, long images)
{
    for (long n = 0; n < images; n++)
        for (int c = 0; c < op->depth; c += LANES) {
            vec sum = {0};
            for (long i = 0; i < op->pixels; i++) sum += seen(&op->from, (n * op->pixels + i) * op->depth + c, c);
            for (int l = 0; l < LANES; l++)
                if (op->channel[c + l] >= 0) op->pooled[n * op->channels + op->channel[c + l]] = sum[l] / op->pixels;
        }
}

static void do_pack(const pack *op)
{
    for (long i = 0; i < op->count; i++) op->to[i] = op->index[i] < 0 ? 0.0f : op->from[op->index[i]];
}

/* As do_pack, two places for each entry. */
static void do_pack_pairs(const pack *op)
{
#if PAIRS
    for (long i = 0; i < op->count; i += LANES) {
        vec first, second;
        for (int l = 0; l < LANES; l++) {
            const int one = op->index[2 * (i + l)], two = op->index[2 * (i + l) + 1];
            first[l] = one < 0 ? 0.0f : op->from[one];
            second[l] = two < 0 ? 0.0f : op->from[two];
        }
        STORE(op->to + i, paired(first, second));
    }
#else
    (void)op;
#endif
}

static void do_pair(const pair *op)
{
#if PAIRS
    long i = 0;
    for (; i + op->step + LANES <= op->floats; i += LANES)
        STORE(op->to + i, paired(LOAD(op->from + i), LOAD(op->from + i + op->step)));
    for (; i < op->floats; i += LANES) { /* nothing behind the end: zeros */
        vec second = {0};
        for (long l = 0; i + l + op->step < op->floats && l < LANES; l++) second[l] = op->from[i + l + op->step];
        STORE(op->to + i, paired(LOAD(op->from + i), second));
    }
#else
    (void)op;
#endif
}

static void do_channel_pairs(const channel_pairs *op)
{
    for (long i = 0; i < op->floats; i += LANES) write((element *)op->to + i, LOAD(op->from + i));
}

static void do_unpack(const unpack *op)
{
    for (long i = 0; i < op->count; i++)
        if (op->index[i] >= 0) op->to[op->index[i]] = op->from[i];
}

/* Do `count` operations for images `first` to `first + images`. */
static void run(const operation *operations, int count, long first, long images)
{
    for (int k = 0; k < count; k++) {
        const void *what = operations[k].what;
        switch (operations[k].kind) {
        case LOAD_VIEW: do_load_view(what, first, images); break;
        case LOAD_GRADIENT: do_load_gradient(what, first, images); break;
        case PRODUCT: do_product(what, images); break;
        case WEIGHT_GRADIENT: do_weight_gradient(what, images); break;
        case PERMUTE: do_permute(what, images); break;
        case STORE_TENSOR: do_store(what, first, images); break;
        case STORE_GRADIENT: do_store_gradient(what, first, images); break;
        case LOAD_SUM_GRADIENT: do_load_sum_gradient(what, first, images); break;
        case LOAD_POOL_GRADIENT: do_load_pool_gradient(what, first, images); break;
        case NORM: do_norm(what, images); break;
        case NORM_GRADIENT: do_norm_gradient(what, images); break;
        case SUM_VIEWS: do_sum_views(what, images); break;
        case POOL: do_pool(what, images); break;
        case PACK: do_pack(what); break;
        case UNPACK: do_unpack(what); break;
        case PAIR: do_pair(what); break;
        case PACK_PAIRS: do_pack_pairs(what); break;
        case CHANNEL_PAIRS: do_channel_pairs(what); break;
        case ZERO: memset(((const zero *)what)->at, 0, ((const zero *)what)->bytes); break;
        case BLOCKS: {
            const blocks *b = what;
            for (long n = 0; n < images; n += b->at_a_time)
                run(b->operations, b->count, n, MIN(b->at_a_time, images - n));
        }
        }
    }
}

const int igc_nas_pairs = PAIRS;

void igc_nas_step(const operation *operations, int count, long images) { run(operations, count, 0, images); }
