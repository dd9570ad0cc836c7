"use strict";
/* Starts the live page with the back end that was loaded before. */
multibox.live({ ...multibox.data, ...(multibox.server ?? multibox.onnx) });
