/* An operator's call: which row of a form it takes. After the artifact's source. */
#ifndef GRISTMILL_OP_H
#define GRISTMILL_OP_H

#include "launch.h"
#include "operand.h"

/* Why a row is not taken: how many of its conditions fail, and the first. */
typedef struct gm_doubt {
    int explain, count;
    const char *first;
} gm_doubt;

typedef struct gm_row {
    int32_t arch;
    int (*meets)(const gristmill_operand *operands, int limits, gm_doubt *doubt);
} gm_row;

/* Asks for a condition: the first that fails ends it, unless all of them are wanted. */
#define GM_ASK(condition, text)                                                                    \
    if (!(condition) || gm_bad) {                                                                  \
        gm_bad = 0;                                                                                \
        if (!doubt->count++) doubt->first = (text);                                                \
        if (!doubt->explain) return 0;                                                             \
    }

GM_FUNCTION int gm_meets(const gm_row *row, const gristmill_operand *operands, int limits) {
    gm_doubt doubt = {0, 0, NULL};
    return row->meets(operands, limits, &doubt);
}

/* A tensor's shape, as a message shows it. */
GM_COLD void gm_say_operands(gm_message *message, const gm_artifact *artifact,
                             const gristmill_operand *operands, int32_t count) {
    int32_t i, d;
    for (i = 0; i < count; i++) {
        const gristmill_operand *one = &operands[i];
        if (one->dtype <= 0 || (size_t)one->dtype >= artifact->element_count) {
            gm_say(message, "%s-", i ? ", " : "");
            continue;
        }
        gm_say(message, "%s%s[", i ? ", " : "", artifact->elements[one->dtype]);
        for (d = 0; d < one->rank && d < GRISTMILL_MAX_DIMENSIONS; d++) {
            gm_say(message, "%s%" PRId64, d ? ", " : "", one->sizes[d]);
        }
        gm_say(message, "]");
    }
}

GM_COLD int32_t gm_no_form(const gm_artifact *artifact, const char *who,
                           const gristmill_operand *operands, int32_t count, const char *forms) {
    gm_message message = gm_begin(who);
    gm_say(&message, "nothing was compiled for arguments of these types (");
    gm_say_operands(&message, artifact, operands, count);
    gm_say(&message, "); there are %s", forms);
    return GRISTMILL_NO_SPECIALISATION;
}

GM_COLD int32_t gm_no_row(const gm_artifact *artifact, const char *who, const gm_row *rows,
                          int32_t count, const gristmill_operand *operands, int32_t arguments,
                          int32_t arch) {
    gm_message message = gm_begin(who);
    gm_doubt least = {1, INT32_MAX, ""};
    int32_t i;
    for (i = 0; i < count; i++) {
        gm_doubt doubt = {1, 0, NULL};
        if (rows[i].arch != arch) continue;
        rows[i].meets(operands, 0, &doubt);
        if (doubt.count < least.count) least = doubt;
    }
    if (least.count == INT32_MAX) {
        gm_say(&message, "no kernels for %s", artifact->archs[arch].name);
        return GRISTMILL_NO_ARCHITECTURE;
    }
    gm_say(&message, "no kernels for these sizes (");
    gm_say_operands(&message, artifact, operands, arguments);
    gm_say(&message, ") on %s; the nearest need `%s`", artifact->archs[arch].name, least.first);
    return GRISTMILL_NO_SPECIALISATION;
}

/* The first row of which all holds, else the last of which the conditions do, for the first of the
   device's architectures that has one. */
GM_FUNCTION int32_t gm_find_row(gm_artifact *artifact, const char *who, const gm_row *rows,
                                int32_t count, const gristmill_operand *operands,
                                int32_t arguments, int32_t *found) {
    gm_place *place = NULL;
    uint32_t a;
    int32_t i, status = gm_find_place(artifact, who, &place);
    if (status) return status;
    for (a = 0; a < place->arch_count; a++) {
        int32_t last = -1;
        for (i = 0; i < count; i++) {
            if (rows[i].arch != place->archs[a] || !gm_meets(&rows[i], operands, 0)) continue;
            last = i;
            if (gm_meets(&rows[i], operands, 1)) break;
        }
        if (last >= 0) {
            *found = last;
            return GRISTMILL_OK;
        }
    }
    return place->arch_count
               ? gm_no_row(artifact, who, rows, count, operands, arguments, place->archs[0])
               : gm_no_architecture(artifact, who, place);
}

#endif
