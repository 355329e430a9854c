import numpy as np

from penn_jax.data.painting import Blob
from penn_jax.data.spine import draw_spine, lay_chart, visible_levels
from penn_jax.data.tumours import Tumour, paint_tumour


def test_a_necrotic_core_is_dark_and_belongs_to_the_mask():
    rng = np.random.default_rng(0)
    spine = draw_spine(rng, np.array([56, 224, 224.0]))
    chart = lay_chart(spine, (14, 80, 80), (4.0, 2.8, 2.8))
    level = visible_levels(spine, chart)[0]
    blob = Blob(spine.centre[level], 0.0, 0.0, 16.0, 16.0, 16.0)
    ring = Tumour((blob,), rim=5.0, inside_canal=False, brightness=1.2)
    image = np.full(chart.beside.shape, 0.5, np.float32)
    share = paint_tumour(rng, image, chart, ring, np.ones_like(image))
    from_middle = np.hypot(np.hypot(chart.along - blob.along, chart.behind), chart.beside)
    core, rim = from_middle < 7, (from_middle > 12) & (from_middle < 13.5)
    np.testing.assert_allclose(share[from_middle < 12], 1)
    # 0.3 is the core's intensity; the rim's is ``brightness`` with 6 % of texture.
    np.testing.assert_allclose(image[core], 0.3, atol=1e-5)
    assert image[rim].mean() > 1.0
    assert (share[from_middle > 23] == 0).all()
